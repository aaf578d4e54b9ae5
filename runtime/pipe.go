package runtime

import (
	"context"
	"errors"
	"io"
	"sync"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/proto"

	"github.com/raylink/raylink/runtime/tunnel"
)

// pipeWindow is how many messages one direction of a stream within a process buffers before its
// sender blocks.
const pipeWindow = 16

// pipe is a stream within one process: messages are passed by reference, not copied.
type pipe struct {
	ctx      context.Context //nolint:containedctx // a stream lives as long as its call's context
	cancel   context.CancelCauseFunc
	node     *Node
	method   *Method
	requests chan passing
	replies  chan passing

	// sent is closed when the caller has sent its last request.
	sent     chan struct{}
	sendOnce sync.Once
	// closed is closed when the caller has abandoned the stream.
	closed    chan struct{}
	closeOnce sync.Once
	// ended is closed when the method has returned err.
	ended chan struct{}
	err   error
	// call is the context of the method.
	call *callContext
	// info is where the caller reads header and trailer; nil if it did not ask for them.
	info *connect.CallInfo
	// header is set once, before the first response is passed or ended is closed; trailer, before
	// ended is closed.
	beginOnce       sync.Once
	header, trailer Metadata
	wrong           error
	// informed is set when the caller has received the header; only its receiving side uses it.
	informed bool
}

// passing is a message in a pipe, with its fingerprint.
type passing struct {
	msg  proto.Message
	sent fingerprint
}

var (
	errStreamClosed = errors.New("the stream was closed by its caller")
	// errStreamEnded ends the context of a call whose method has returned.
	errStreamEnded = errors.New("the call is over")
)

// openPipe runs a streaming method of a node in this process.
func (n *Node) openPipe(ctx context.Context, m *Method, out *outgoing) (connect.ClientStream, error) {
	if ctx.Err() != nil {
		return nil, n.ended(ctx, m, unsent)
	}
	mayBlock(ctx)
	p := &pipe{
		node: n, method: m, info: out.info,
		requests: make(chan passing, pipeWindow), replies: make(chan passing, pipeWindow),
		sent: make(chan struct{}), closed: make(chan struct{}), ended: make(chan struct{}),
	}
	p.ctx, p.cancel = context.WithCancelCause(ctx)
	cc := localCall(ctx, m, out.metadata)
	cc.caller = p.ctx
	p.call = cc
	// The caller that opened the stream need not wait for it, and the stream may outlive the turn
	// that it was opened in.
	cc.chain = nil
	unlink := context.AfterFunc(n.work, func() { p.cancel(errNodeStopped) })
	go func() {
		returned := false
		defer func() {
			unlink()
			if !returned {
				p.err = n.goexited(m)
			}
			if wrong := p.begin(); wrong == nil {
				_, p.trailer, p.err = n.outcome(cc, p.err)
			} else if p.err == nil {
				p.err = wrong
			}
			close(p.ended)
			p.cancel(errStreamEnded)
		}()
		p.err = n.runStream(cc, pipeServer{p})
		returned = true
	}()
	return pipeClient{p: p, ctx: ctx}, nil
}

// pipeServer is the node's end.
type pipeServer struct{ p *pipe }

var (
	_ connect.ServerStream = pipeServer{}
	_ handover             = pipeServer{}
	_ connect.ClientStream = pipeClient{}
	_ handover             = pipeClient{}
)

func (s pipeServer) SendHeaders() error { return s.p.begin() }

func (s pipeServer) Send(msg any) error {
	if err := s.p.begin(); err != nil {
		return err
	}
	return s.p.send(s.p.replies, msg)
}

// begin determines the response's header, once: it is sent with the first response, or at the end
// of a stream without any.
func (p *pipe) begin() error {
	p.beginOnce.Do(func() { p.header, _, p.wrong = p.node.outcome(p.call, nil) })
	return p.wrong
}

// inform delivers the header to the caller, when a response or the end has been received.
func (p *pipe) inform() {
	if !p.informed {
		p.informed = true
		deliverHeader(p.info, p.header)
	}
}

func (s pipeServer) Receive(msg any) error { return receiveInto(s, msg) }

func (s pipeServer) receiveMessage() (proto.Message, error) {
	select {
	case msg := <-s.p.requests:
		return s.p.receive(msg, true)
	case <-s.p.sent:
	case <-s.p.ctx.Done():
		return nil, s.p.node.ended(s.p.ctx, s.p.method, streaming)
	}
	select {
	case msg := <-s.p.requests: // sent before the end
		return s.p.receive(msg, true)
	default:
		return nil, io.EOF
	}
}

// send passes msg to the other end, or returns why it cannot.
func (p *pipe) send(to chan<- passing, msg any) error {
	m, ok := msg.(proto.Message)
	if !ok {
		return connect.Errorf(connect.CodeInternal, "%T is not a message", msg)
	}
	if p.ctx.Err() != nil {
		return p.node.ended(p.ctx, p.method, streaming)
	}
	if err := p.node.checkEncodes(p.method, to == p.requests, m); err != nil {
		return err
	}
	select {
	case to <- passing{msg: p.node.passes(m), sent: fingerprintOf(m)}:
		return nil
	case <-p.ctx.Done():
		return p.node.ended(p.ctx, p.method, streaming)
	}
}

// receive checks the fingerprint of a message that was passed.
func (p *pipe) receive(m passing, request bool) (proto.Message, error) {
	if err := p.node.verifyStreamed(m.sent, p.method); err != nil {
		return nil, err
	}
	if err := p.node.checkDecodes(p.method, request, m.msg); err != nil {
		return nil, err
	}
	return m.msg, nil
}

// pipeClient is the caller's end. ctx is the caller's own, which outlives the pipe's.
type pipeClient struct {
	p   *pipe
	ctx context.Context //nolint:containedctx // as in pipe
}

func (c pipeClient) SendHeaders() error { return nil }

func (c pipeClient) Send(msg any) error {
	select {
	case <-c.p.ended:
		return io.EOF
	default:
	}
	select {
	case <-c.p.sent:
		return tunnel.ErrSendAfterCloseSend
	default:
	}
	err := c.p.send(c.p.requests, msg)
	if cause := context.Cause(c.p.ctx); err != nil && (errors.Is(cause, errStreamEnded) || errors.Is(cause, errNodeStopped)) {
		return io.EOF // Receive returns the reason
	}
	return err
}

func (c pipeClient) CloseSend() error {
	c.p.sendOnce.Do(func() { close(c.p.sent) })
	return nil
}

func (c pipeClient) Receive(msg any) error { return receiveInto(c, msg) }

func (c pipeClient) receiveMessage() (proto.Message, error) {
	select {
	case msg := <-c.p.replies:
		c.p.inform()
		return c.p.receive(msg, false)
	case <-c.p.ended:
	case <-c.ctx.Done():
		return nil, c.p.node.ended(c.ctx, c.p.method, streaming)
	case <-c.p.closed:
		return nil, closedStreamError()
	case <-c.p.node.life.Done():
		// Its methods have had time to return.
		if !returnsLate(c.ctx, c.p.ended) {
			return nil, c.p.node.unreturned(c.p.method).WithRemote()
		}
	}
	// The method has returned: deliver what it sent before.
	select {
	case msg := <-c.p.replies:
		c.p.inform()
		return c.p.receive(msg, false)
	default:
	}
	c.p.inform()
	deliverTrailer(c.p.info, c.p.trailer)
	if c.p.err != nil {
		return nil, fromPeer(c.ctx, c.p.err)
	}
	return nil, io.EOF
}

func (c pipeClient) Close() error {
	c.p.closeOnce.Do(func() { close(c.p.closed) })
	c.p.cancel(errStreamClosed)
	return nil
}

// receiveInto copies the message for receivers that supply their own: interceptors' wrappers, and
// connect's.
func receiveInto(h handover, into any) error {
	msg, err := h.receiveMessage()
	if err != nil {
		return err
	}
	dst, ok := into.(proto.Message)
	if !ok {
		return connect.Errorf(connect.CodeInternal, "%T is not a message", into)
	}
	proto.Reset(dst)
	proto.Merge(dst, msg)
	return nil
}
