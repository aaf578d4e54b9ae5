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

// The stream types below are interfaces, so that a test can pass a fake. One goroutine may send and
// another receive at the same time; two sends, or two receives, may not overlap. A message handed
// to Send belongs to nobody from then on.
type (
	// ServerStreamingServer is what a server-streaming method sends its responses on.
	ServerStreamingServer[Res proto.Message] interface {
		// Send sends the next response. It blocks while the receiver is behind, until the call's
		// context ends.
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
		// Receive waits for the next response. After the last one it returns io.EOF; any other
		// error is the call's. Once it has returned an error it returns that one again.
		Receive() (Res, error)
		// Close abandons the stream and frees what it holds. It may be called at any time, from any
		// goroutine, more than once; it is not needed after Receive has returned an error.
		Close() error
	}

	// ClientStreamingClient is what a caller sends a client-streaming method's requests on.
	ClientStreamingClient[Req, Res proto.Message] interface {
		// Send sends the next request. After the node has ended the call it returns io.EOF, and
		// CloseAndReceive says why. After CloseAndReceive it is an error, as after Close.
		Send(req Req) error
		// CloseAndReceive ends the requests and waits for the response, once.
		CloseAndReceive() (Res, error)
		// Close abandons the stream, as in ServerStreamingClient.
		Close() error
	}

	// BidiStreamingClient is both.
	BidiStreamingClient[Req, Res proto.Message] interface {
		// Send is as in ClientStreamingClient. After CloseSend it is an error.
		Send(req Req) error
		// CloseSend ends the requests; responses may still come. Only the first call does anything.
		CloseSend() error
		// Receive is as in ServerStreamingClient.
		Receive() (Res, error)
		// Close is as in ServerStreamingClient.
		Close() error
	}
)

// handover is implemented by streams inside one process: they hand the message itself over, without
// a copy.
type handover interface {
	receiveMessage() (proto.Message, error)
}

// receiver is the half of connect's streams that both sides share.
type receiver interface{ Receive(msg any) error }

// emptyReceiver is implemented by streams that need not empty a message which is empty already: see
// tunnel's.
type emptyReceiver interface {
	ReceiveEmpty(msg proto.Message) error
}

// source is a stream to receive from. What it can do beyond connect's is looked up once: that would
// cost as much as receiving a small message.
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

// receive receives the next message, made by fresh where it isn't handed over.
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

// typedMessage gives what was received its type.
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

// ServedStream is the node's side of a stream, without its types. It is for generated code.
type ServedStream struct {
	stream connect.ServerStream
	source source // only receive uses it
	method *Method
}

func (s *ServedStream) receive() (proto.Message, error) {
	return s.source.from(s.stream).receive(s.method.newRequest)
}

// ReceiveRequest receives the only request of a server-streaming method.
func ReceiveRequest[Req proto.Message](s *ServedStream) (Req, error) {
	return typedMessage[Req](s.receive())
}

// SendResponse sends the only response of a client-streaming method, unless err says that there is
// none.
func SendResponse[Res proto.Message](s *ServedStream, res Res, err error) error {
	if err != nil {
		return err
	}
	return s.stream.Send(orEmpty(res, s.method.newResponse))
}

// ServerStream is the stream of a server-streaming method.
func ServerStream[Res proto.Message](s *ServedStream) ServerStreamingServer[Res] {
	return serverStreamingServer[Res]{s}
}

// ClientStream is the stream of a client-streaming method.
func ClientStream[Req proto.Message](s *ServedStream) ClientStreamingServer[Req] {
	return clientStreamingServer[Req]{s}
}

// BidiStream is the stream of a bidirectional method.
func BidiStream[Req, Res proto.Message](s *ServedStream) BidiStreamingServer[Req, Res] {
	return bidiStreamingServer[Req, Res]{s}
}

// The typed streams have one pointer each, so that to make one allocates nothing, and as little
// code as can be, for there is one of each for every method.
type (
	serverStreamingServer[Res proto.Message]      struct{ s *ServedStream }
	clientStreamingServer[Req proto.Message]      struct{ s *ServedStream }
	bidiStreamingServer[Req, Res proto.Message]   struct{ s *ServedStream }
	serverStreamingClient[Res proto.Message]      struct{ c *callStream }
	clientStreamingClient[Req, Res proto.Message] struct{ c *callStream }
	bidiStreamingClient[Req, Res proto.Message]   struct{ c *callStream }
)

func (s serverStreamingServer[Res]) Send(res Res) error {
	return s.s.stream.Send(orEmpty(res, s.s.method.newResponse))
}

func (s clientStreamingServer[Req]) Receive() (Req, error) { return typedMessage[Req](s.s.receive()) }

func (s bidiStreamingServer[Req, Res]) Receive() (Req, error) {
	return typedMessage[Req](s.s.receive())
}

func (s bidiStreamingServer[Req, Res]) Send(res Res) error {
	return s.s.stream.Send(orEmpty(res, s.s.method.newResponse))
}

// callStream is the caller's side of a stream, without its types. What a caller may no longer do
// with its stream it is told here, so that the answer is the same whatever way the call goes.
type callStream struct {
	ctx    context.Context //nolint:containedctx // a stream lives as long as its call's context
	stream connect.ClientStream
	source source // only receive uses it
	method *Method
	target *target

	// state has streamHalfClosed, streamClosed and streamEnded. outcome is what receive ended with;
	// it is set before streamEnded is.
	state   atomic.Uint32
	outcome error
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

// finish makes err what all further receives return.
func (c *callStream) finish(err error) {
	c.outcome = err
	c.state.Or(streamEnded)
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
			err = closedStreamError() // the stream was closed while this waited
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
		return io.EOF // receive says why
	case c.ctx.Err() != nil:
		return endedAt(causeOf(c.ctx), c.target.pathHint(), c.method, streaming)
	}
	err := c.stream.Send(req)
	switch {
	case err == nil || c.ctx.Err() == nil && !c.is(streamClosed):
		return err
	case c.ctx.Err() != nil:
		return endedAt(causeOf(c.ctx), c.target.pathHint(), c.method, streaming)
	}
	return closedStreamError()
}

// closeSend ends the requests, once; there is nothing to end where the stream is over.
func (c *callStream) closeSend() error {
	over := c.is(streamClosed | streamEnded)
	if before := c.state.Or(streamHalfClosed); over || before&streamHalfClosed != 0 {
		return nil
	}
	return c.stream.CloseSend()
}

func (c *callStream) close() error {
	c.state.Or(streamClosed)
	return c.stream.Close()
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
	// The call's outcome and its trailer come after the response.
	switch _, err := c.receive(); {
	case err == nil:
		_ = c.stream.Close() // the error says what is wrong
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
