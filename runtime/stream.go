package runtime

import (
	"errors"
	"io"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/proto"
)

// The stream types below are interfaces, so that a test can pass a fake. One goroutine may send and another receive at the
// same time; two sends, or two receives, may not overlap. A message handed to Send belongs to nobody from then on.
type (
	// ServerStreamingServer is what a server-streaming method sends its responses on.
	ServerStreamingServer[Res proto.Message] interface {
		// Send sends the next response. It blocks while the receiver is behind, until the call's context ends.
		Send(res Res) error
	}

	// ClientStreamingServer is what a client-streaming method reads its requests from.
	ClientStreamingServer[Req proto.Message] interface {
		// Receive waits for the next request. After the last one it returns io.EOF.
		Receive() (Req, error)
	}

	// BidiStreamingServer is both.
	BidiStreamingServer[Req, Res proto.Message] interface {
		// Receive is as in ClientStreamingServer.
		Receive() (Req, error)
		// Send is as in ServerStreamingServer.
		Send(res Res) error
	}

	// ServerStreamingClient is what a caller reads a server-streaming method's responses from.
	ServerStreamingClient[Res proto.Message] interface {
		// Receive waits for the next response. After the last one it returns io.EOF; any other error is the call's.
		Receive() (Res, error)
		// Close abandons the stream and frees what it holds. It may be called at any time, from any goroutine, more than once;
		// it is not needed after Receive has returned an error.
		Close() error
	}

	// ClientStreamingClient is what a caller sends a client-streaming method's requests on.
	ClientStreamingClient[Req, Res proto.Message] interface {
		// Send sends the next request. After the node has ended the call it returns io.EOF; CloseAndReceive tells why.
		Send(req Req) error
		// CloseAndReceive ends the requests and waits for the response.
		CloseAndReceive() (Res, error)
		// Close abandons the stream, as in ServerStreamingClient.
		Close() error
	}

	// BidiStreamingClient is both.
	BidiStreamingClient[Req, Res proto.Message] interface {
		// Send is as in ClientStreamingClient.
		Send(req Req) error
		// CloseSend ends the requests; responses may still come.
		CloseSend() error
		// Receive is as in ServerStreamingClient.
		Receive() (Res, error)
		// Close is as in ServerStreamingClient.
		Close() error
	}
)

// handover is implemented by streams inside one process: they hand the message itself over, without a copy.
type handover interface {
	receiveMessage() (proto.Message, error)
}

// receiver is the half of connect's streams that both sides share.
type receiver interface{ Receive(msg any) error }

// emptyReceiver is implemented by streams that need not empty a message which is empty already: see tunnel's.
type emptyReceiver interface {
	ReceiveEmpty(msg proto.Message) error
}

// source is a stream to receive from. What it can do beyond connect's is looked up once: that would cost as much as receiving a small message.
type source struct {
	stream receiver
	local  handover
	empty  emptyReceiver
}

// from makes it the source of a stream, if it is none yet.
func (s *source) from(stream receiver) *source {
	if s.stream == nil {
		s.stream = stream
		s.local, _ = stream.(handover)
		s.empty, _ = stream.(emptyReceiver)
	}
	return s
}

// fill receives into an empty message.
func (s *source) fill(msg proto.Message) error {
	if s.empty != nil {
		return s.empty.ReceiveEmpty(msg) //nolint:wrapcheck // as Receive's
	}
	return s.stream.Receive(msg) //nolint:wrapcheck // it is the call's
}

func receive[P proto.Message](s *source, fresh func() P) (P, error) {
	var none P
	if s.local != nil {
		msg, err := s.local.receiveMessage()
		if err != nil {
			return none, err
		}
		if typed, ok := msg.(P); ok {
			return typed, nil
		}
		return none, connect.Errorf(connect.CodeInternal, "a stream of %T carried a %T", none, msg)
	}
	msg := fresh()
	if err := s.fill(msg); err != nil {
		if errors.Is(err, io.EOF) {
			return none, io.EOF
		}
		return none, err
	}
	return msg, nil
}

// serverStream is the node's side of every streaming shape; the interfaces above show the part that fits.
type serverStream[Req, Res proto.Message] struct {
	stream connect.ServerStream
	source source // only Receive uses it
	method *typed[Req, Res]
}

func (s *serverStream[Req, Res]) Receive() (Req, error) {
	return receive(s.source.from(s.stream), s.method.newRequest)
}

func (s *serverStream[Req, Res]) Send(res Res) error {
	return s.stream.Send(orEmpty(res, s.method.newResponse))
}

// clientStream is the caller's side of every streaming shape.
type clientStream[Req, Res proto.Message] struct {
	stream connect.ClientStream
	source source // only Receive uses it
	method *typed[Req, Res]
}

func (c *clientStream[Req, Res]) Receive() (Res, error) {
	return receive(c.source.from(c.stream), c.method.newResponse)
}

func (c *clientStream[Req, Res]) Send(req Req) error {
	return c.stream.Send(orEmpty(req, c.method.newRequest))
}
func (c *clientStream[Req, Res]) CloseSend() error { return c.stream.CloseSend() }
func (c *clientStream[Req, Res]) Close() error     { return c.stream.Close() }

func (c *clientStream[Req, Res]) CloseAndReceive() (Res, error) {
	var none Res
	if err := c.stream.CloseSend(); err != nil {
		return none, err
	}
	res, err := c.Receive()
	if err != nil {
		if errors.Is(err, io.EOF) {
			return none, connect.NewError(connect.CodeInternal, "the call ended without a response")
		}
		return none, err
	}
	// The call's outcome and its trailer come after the response.
	switch _, err := c.Receive(); {
	case err == nil:
		_ = c.stream.Close() // the error says what is wrong
		return none, connect.Errorf(connect.CodeInternal, "%s sent more than one response", c.method.m.fullName())
	case !errors.Is(err, io.EOF):
		return none, err
	}
	return res, c.stream.Close()
}
