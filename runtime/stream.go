package runtime

import (
	"context"
	"errors"
	"io"
	"sync/atomic"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/proto"

	"github.com/raylink/raylink/runtime/tunnel"
)

// The stream types below are interfaces, so that tests can pass fakes. One goroutine may send while
// another receives; two sends, or two receives, must not overlap. A message must not be modified
// after it was passed to Send.
type (
	// ServerStreamingServer is the stream on which a server-streaming method sends its responses.
	ServerStreamingServer[Res proto.Message] interface {
		// Send sends the next response. It blocks while the receiver is behind, until the call's
		// context ends.
		Send(res Res) error
	}

	// ClientStreamingServer is the stream from which a client-streaming method receives its
	// requests.
	ClientStreamingServer[Req proto.Message] interface {
		// Receive blocks until the next request. After the last one it returns io.EOF.
		Receive() (Req, error)
	}

	// BidiStreamingServer is the stream of a bidirectional method.
	BidiStreamingServer[Req, Res proto.Message] interface {
		// Receive is as in ClientStreamingServer.
		Receive() (Req, error)
		// Send is as in ServerStreamingServer.
		Send(res Res) error
	}

	// ServerStreamingClient is the stream from which a caller receives a server-streaming method's
	// responses.
	ServerStreamingClient[Res proto.Message] interface {
		// Receive blocks until the next response. After the last one it returns io.EOF; any other
		// error is the call's. Once it has returned an error, it returns the same error again.
		Receive() (Res, error)
		// Close abandons the stream and frees its resources. It may be called at any time, by any
		// goroutine, more than once; it is not needed after Receive has returned an error.
		Close() error
	}

	// ClientStreamingClient is the stream on which a caller sends a client-streaming method's
	// requests.
	ClientStreamingClient[Req, Res proto.Message] interface {
		// Send sends the next request. After the node has ended the call it returns io.EOF, and
		// CloseAndReceive returns the reason. It fails after CloseAndReceive and after Close.
		Send(req Req) error
		// CloseAndReceive ends the requests and waits for the response. It may be called once.
		CloseAndReceive() (Res, error)
		// Close abandons the stream, as in ServerStreamingClient.
		Close() error
	}

	// BidiStreamingClient is the caller's stream of a bidirectional method.
	BidiStreamingClient[Req, Res proto.Message] interface {
		// Send is as in ClientStreamingClient. It fails after CloseSend.
		Send(req Req) error
		// CloseSend ends the requests; responses may still arrive. Further calls do nothing.
		CloseSend() error
		// Receive is as in ServerStreamingClient.
		Receive() (Res, error)
		// Close is as in ServerStreamingClient.
		Close() error
	}
)

// handover is implemented by streams within one process, which pass the message itself instead of a
// copy.
type handover interface {
	receiveMessage() (proto.Message, error)
}

// receiver is the receiving half that both sides of connect's streams have.
type receiver interface{ Receive(msg any) error }

// source is a stream to receive from. Its optional interfaces are looked up only once, because that
// costs as much as receiving a small message.
type source struct {
	stream receiver
	local  handover
	empty  tunnel.EmptyReceiver
}

// from initializes the source with a stream on first use.
func (s *source) from(stream receiver) *source {
	if s.stream == nil {
		s.stream = stream
		s.local, _ = stream.(handover)
		s.empty, _ = stream.(tunnel.EmptyReceiver)
	}
	return s
}

// fill receives into an empty message.
func (s *source) fill(msg proto.Message) error {
	if s.empty != nil {
		return s.empty.ReceiveEmpty(msg) //nolint:wrapcheck // as for Receive
	}
	return s.stream.Receive(msg) //nolint:wrapcheck // the call's own error
}

// receive receives the next message, which fresh allocates unless it is passed by reference.
func (s *source) receive(fresh func() proto.Message) (proto.Message, error) {
	if s.local != nil {
		return s.local.receiveMessage()
	}
	msg := fresh()
	if err := s.fill(msg); err != nil {
		if errors.Is(err, io.EOF) {
			return nil, io.EOF
		}
		return nil, err
	}
	return msg, nil
}

// typedMessage converts a received message to its type.
func typedMessage[M proto.Message](msg proto.Message, err error) (M, error) {
	var none M
	if err != nil {
		return none, err
	}
	if typed, ok := msg.(M); ok {
		return typed, nil
	}
	return none, connect.Errorf(connect.CodeInternal, "a stream of %T carried a %T", none, msg)
}

// servedStream is the node's side of a stream.
type servedStream struct {
	stream connect.ServerStream
	source source // used by receive only
	method *Method
}

func (s *servedStream) receive() (proto.Message, error) {
	return s.source.from(s.stream).receive(s.method.newRequest)
}

// The typed streams hold one pointer each, so that making one does not allocate. They contain as
// little code as possible, because they are instantiated for every method.
type (
	serverStreamingClient[Res proto.Message]      struct{ c *callStream }
	clientStreamingClient[Req, Res proto.Message] struct{ c *callStream }
	bidiStreamingClient[Req, Res proto.Message]   struct{ c *callStream }
)

// callStream is the caller's side of a stream, untyped. It checks misuse of the stream, so that the
// errors are the same for every way of the call.
type callStream struct {
	ctx    context.Context //nolint:containedctx // a stream lives as long as its call's context
	stream connect.ClientStream
	source source // used by receive only
	method *Method
	to     endpoint

	// state is a set of streamHalfClosed, streamClosed and streamEnded. outcome is the error with
	// which receive ended; it is set before streamEnded.
	state   atomic.Uint32
	outcome error
	// end is set if an interceptor wants to know when the stream is over.
	end *streamEnd
}

const (
	// streamHalfClosed: the caller has ended its requests.
	streamHalfClosed = 1 << iota
	// streamClosed: the caller has abandoned the stream.
	streamClosed
	// streamEnded: receive has returned an error, maybe io.EOF.
	streamEnded
)

func (c *callStream) is(state uint32) bool { return c.state.Load()&state != 0 }

// finish sets the error that all further receives return.
func (c *callStream) finish(err error) {
	c.outcome = err
	c.state.Or(streamEnded)
	c.end.over(err)
}

func (c *callStream) receive() (proto.Message, error) {
	switch {
	case c.is(streamEnded):
		return nil, c.outcome
	case c.is(streamClosed):
		return nil, closedStreamError()
	}
	res, err := c.source.from(c.stream).receive(c.method.newResponse)
	if err != nil {
		if c.is(streamClosed) && c.ctx.Err() == nil && !errors.Is(err, io.EOF) {
			err = closedStreamError() // the stream was closed while this call was blocked
		}
		c.finish(err)
		return nil, err
	}
	return res, nil
}

func (c *callStream) send(req proto.Message) error {
	switch {
	case c.is(streamClosed):
		return closedStreamError()
	case c.is(streamHalfClosed):
		return tunnel.ErrSendAfterCloseSend
	case c.is(streamEnded):
		return io.EOF // receive returns the reason
	case c.ctx.Err() != nil:
		return endedAt(causeOf(c.ctx), c.to.label(), c.method, streaming)
	}
	err := c.stream.Send(req)
	switch {
	case err == nil || c.ctx.Err() == nil && !c.is(streamClosed):
		return err
	case c.ctx.Err() != nil:
		return endedAt(causeOf(c.ctx), c.to.label(), c.method, streaming)
	}
	return closedStreamError()
}

// closeSend ends the requests once. It does nothing if the stream has ended.
func (c *callStream) closeSend() error {
	over := c.is(streamClosed | streamEnded)
	if before := c.state.Or(streamHalfClosed); over || before&streamHalfClosed != 0 {
		return nil
	}
	return c.stream.CloseSend()
}

func (c *callStream) close() error {
	c.state.Or(streamClosed)
	err := c.stream.Close()
	c.end.over(closedStreamError())
	return err
}

// closeAndReceive ends the requests and receives the only response.
func (c *callStream) closeAndReceive() (proto.Message, error) {
	if err := c.closeSend(); err != nil {
		return nil, err
	}
	res, err := c.receive()
	if err != nil {
		if errors.Is(err, io.EOF) {
			return nil, connect.NewError(connect.CodeInternal, "the call ended without a response")
		}
		return nil, err
	}
	// The outcome and trailer of the call follow the response.
	switch _, err := c.receive(); {
	case err == nil:
		_ = c.stream.Close() // the error below is the reason
		return nil, connect.Errorf(connect.CodeInternal, "%s sent more than one response", c.method.fullName())
	case !errors.Is(err, io.EOF):
		return nil, err
	}
	c.finish(connect.NewError(connect.CodeInternal, "the response has been received: CloseAndReceive was called before"))
	return res, c.stream.Close()
}

func (c serverStreamingClient[Res]) Receive() (Res, error) { return typedMessage[Res](c.c.receive()) }
func (c serverStreamingClient[Res]) Close() error          { return c.c.close() }

func (c clientStreamingClient[Req, Res]) Send(req Req) error {
	return c.c.send(orEmpty(req, c.c.method.newRequest))
}

func (c clientStreamingClient[Req, Res]) CloseAndReceive() (Res, error) {
	return typedMessage[Res](c.c.closeAndReceive())
}

func (c clientStreamingClient[Req, Res]) Close() error { return c.c.close() }

func (c bidiStreamingClient[Req, Res]) Send(req Req) error {
	return c.c.send(orEmpty(req, c.c.method.newRequest))
}
func (c bidiStreamingClient[Req, Res]) CloseSend() error { return c.c.closeSend() }
func (c bidiStreamingClient[Req, Res]) Receive() (Res, error) {
	return typedMessage[Res](c.c.receive())
}
func (c bidiStreamingClient[Req, Res]) Close() error { return c.c.close() }
