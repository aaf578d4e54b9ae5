package runtime

import (
	"cmp"
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"connectrpc.com/connect/v2"
	"github.com/google/uuid"
	"google.golang.org/protobuf/proto"

	nodev1 "github.com/raylink/raylink/gen/raylink/node/v1"
	"github.com/raylink/raylink/internal/usercode"
	"github.com/raylink/raylink/runtime/tunnel"
)

// newStandalone runs a node's implementation behind a mailbox in this process, outside any system.
func newStandalone(service *Service, impl any) *Node {
	n := newNode(nil, NodeType{service: service}, &nodev1.NodeRecord{
		Nid:  uuid.NewString(), // its own, by which cycles of calls are detected
		Path: service.Type(), Name: service.Type(), Type: service.Type(), Service: service.name,
	})
	n.serveWith(impl)
	return n
}

// registerStandalone registers the methods of such a node with a connect server.
func registerStandalone(server *connect.Server, n *Node) {
	for _, m := range n.service.methods {
		server.Register(connect.Method{Spec: m.spec, Handler: func(ctx context.Context, _ connect.Spec, stream connect.ServerStream) error {
			return n.serveConnect(ctx, m, stream)
		}})
	}
}

// serveConnect serves a call that came through a connect server, over HTTP for example. ctx
// contains connect's CallInfo.
func (n *Node) serveConnect(ctx context.Context, m *Method, stream connect.ServerStream) error {
	info, ok := connect.CallInfoForServerContext(ctx)
	if !ok {
		info = &connect.CallInfo{}
	}
	way := byTunnel
	switch info.Protocol {
	case connect.ProtocolNameConnect, connect.ProtocolNameGRPC, connect.ProtocolNameGRPCWeb:
		way = byHTTP
	}
	cc := newCall(ctx, m, way)
	metadata, err := tunnel.HeaderFrom(info.RequestHeader())
	if err != nil {
		return err
	}
	cc.call.receive(Metadata{header: metadata})
	if m.shape != connect.StreamTypeUnary {
		reply := &replyStream{ServerStream: stream, node: n, call: cc, isShared: true, setHeader: func(md Metadata) { md.addTo(info.ResponseHeader()) }}
		trailer, err := reply.end(n.runStreamApart(cc, reply))
		trailer.addTo(info.ResponseTrailer())
		return err
	}
	req := m.newRequest()
	if err := stream.Receive(req); err != nil {
		return undecodable(m, true, err)
	}
	// Never on this goroutine: it is the transport's, and a method may end the one that it runs on.
	done := make(chan struct{})
	j, err := n.submit(cc, req, proto.Size(req), func(*job) { close(done) })
	if err != nil {
		return err
	}
	select {
	case <-done:
	case <-n.life.Done():
		if !returnsLate(ctx, done) {
			return n.unreturned(m)
		}
	case <-ctx.Done():
		return n.ended(ctx, m, n.cancel(j, context.Cause(ctx)))
	}
	header, trailer, err := n.outcome(cc, j.err)
	header.addTo(info.ResponseHeader())
	trailer.addTo(info.ResponseTrailer())
	if err != nil {
		return err
	}
	return n.sendResponse(m, stream, j.res)
}

// sendResponse encodes and sends a unary method's response. The goroutine is the transport's:
// encoding a message may panic, because its node is modifying it, and then only its call fails.
func (n *Node) sendResponse(m *Method, stream connect.ServerStream, res proto.Message) (err error) {
	returned := false
	defer func() {
		if f := usercode.Outcome(returned, recover()); f != nil {
			f.Log(n.logger(), "encoding a response", slog.String("node", n.path), slog.String("method", m.fullName()))
			err = connect.Errorf(connect.CodeInternal, "encoding a message of %s: it %v", m.spec.Procedure, f)
		}
	}()
	err = sendOver(m, stream, res)
	returned = true
	return err
}

// runStreamApart is runStream on a goroutine of its own. The current one is the transport's: a
// method must neither end it nor, once the call's context has ended, occupy it for long.
func (n *Node) runStreamApart(cc *callContext, stream *replyStream) error {
	ctx, m := cc.caller, cc.call.method
	done := make(chan struct{})
	var outcome error // set before done is closed
	go func() {
		returned := false
		defer func() {
			if !returned {
				outcome = n.goexited(m)
			}
			close(done)
		}()
		outcome = n.runStream(cc, stream)
		returned = true
	}()
	defer stream.finish(ctx)
	select {
	case <-done:
		return outcome
	case <-n.life.Done():
		if returnsLate(ctx, done) {
			return outcome
		}
		return n.unreturned(m)
	case <-ctx.Done():
	}
	late := time.NewTimer(grace)
	defer late.Stop()
	select {
	case <-done:
		return outcome
	case <-late.C:
		n.logger().Warn("a method goes on although its call is over", slog.String("node", n.path), slog.String("method", m.fullName()))
		return n.ended(ctx, m, running)
	}
}

// sendOver sends a response over one of connect's transports. The error for a message that cannot
// be encoded is the same as for every other way.
func sendOver(m *Method, stream connect.ServerStream, msg any) error {
	message, ok := msg.(proto.Message)
	if !ok {
		return stream.Send(msg)
	}
	err := stream.Send(msg)
	if err != nil && connect.CodeOf(err) == connect.CodeInternal {
		if why := tunnel.CheckMessage(m.spec.Procedure, false, message); why != nil {
			return why
		}
	}
	return err
}

// replyStream sets the headers of the node's code where the transport expects them: before the
// first message, or at the end of a stream without messages.
type replyStream struct {
	connect.ServerStream

	node      *Node
	call      *callContext
	setHeader func(Metadata)
	once      sync.Once
	wrong     error
	source    source // used by ReceiveEmpty only

	// over is set when the transport's goroutine returns: sending would have no effect then, and
	// may panic.
	over atomic.Bool
	// isShared is set if the response must not be used after the transport's goroutine has
	// returned.
	isShared bool
	mu       sync.Mutex // guards the fields below, and setting over
	// sending counts the operations that use the response; sent is closed when there are none left
	// after the end.
	sending int
	sent    chan struct{}
}

var (
	_ connect.ServerStream = (*replyStream)(nil)
	_ tunnel.EmptyReceiver = (*replyStream)(nil)
)

// begin sets the header, once.
func (s *replyStream) begin() error {
	s.once.Do(func() {
		var header Metadata
		if header, _, s.wrong = s.node.outcome(s.call, nil); s.wrong == nil {
			s.setHeader(header)
		}
	})
	return s.wrong
}

// end returns the trailer and the outcome of the stream; err is the outcome if the method has
// failed.
func (s *replyStream) end(err error) (trailer Metadata, _ error) {
	if wrong := s.begin(); wrong != nil {
		return trailer, cmp.Or(err, wrong)
	}
	_, trailer, err = s.node.outcome(s.call, err)
	return trailer, err
}

// guard runs an operation on the transport's stream, unless that has ended.
func (s *replyStream) guard(operation func() error) (err error) {
	defer func() {
		if !s.over.Load() {
			return
		}
		if value := recover(); value != nil { // it ended just then
			err = overError()
		}
	}()
	if s.over.Load() {
		return overError()
	}
	return operation()
}

// guardResponse is guard for an operation that uses the response: the transport's goroutine returns
// only after it.
func (s *replyStream) guardResponse(operation func() error) error {
	if !s.isShared {
		return s.guard(operation)
	}
	s.mu.Lock()
	if s.over.Load() {
		s.mu.Unlock()
		return overError()
	}
	s.sending++
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.sending--; s.sending == 0 && s.sent != nil {
			close(s.sent)
		}
	}()
	return s.guard(operation)
}

// finish ends all use of the transport's stream. Another goroutine of the method may still be
// sending when the method has returned, or the method itself when its call has ended: finish waits
// for that, and interrupts it when the caller has gone, the node has ended, or it takes too long.
func (s *replyStream) finish(ctx context.Context) {
	s.mu.Lock()
	s.over.Store(true)
	if s.sending == 0 {
		s.mu.Unlock()
		return
	}
	sent := make(chan struct{})
	s.sent = sent
	s.mu.Unlock()
	late := time.NewTimer(grace)
	defer late.Stop()
	select {
	case <-sent:
		return
	case <-ctx.Done():
	case <-s.node.life.Done():
	case <-late.C:
	}
	if counted, ok := s.ServerStream.(*countedStream); ok {
		counted.call.response.interruptNow()
		<-sent
		return
	}
	late.Reset(grace)
	select {
	case <-sent:
	case <-late.C: // the transport of another server cannot be interrupted
		s.node.logger().Warn("a stream is still being sent on although its call is over",
			slog.String("node", s.node.path), slog.String("method", s.call.call.method.fullName()))
	}
}

// overError is the error for code that uses its stream after the method has returned.
func overError() error {
	return connect.NewError(connect.CodeCanceled, errStreamEnded.Error()).WithCause(context.Canceled)
}

// Receive implements [connect.ServerStream].
func (s *replyStream) Receive(msg any) error {
	return s.guard(func() error { return undecodable(s.call.call.method, true, s.ServerStream.Receive(msg)) })
}

// ReceiveEmpty implements [tunnel.EmptyReceiver].
func (s *replyStream) ReceiveEmpty(msg proto.Message) error {
	return s.guard(func() error { return undecodable(s.call.call.method, true, s.source.from(s.ServerStream).fill(msg)) })
}

// SendHeaders implements [connect.ServerStream].
func (s *replyStream) SendHeaders() error {
	return s.guardResponse(func() error {
		if err := s.begin(); err != nil {
			return err
		}
		return s.ServerStream.SendHeaders()
	})
}

// Send implements [connect.ServerStream].
func (s *replyStream) Send(msg any) error {
	return s.guardResponse(func() error {
		if err := s.begin(); err != nil {
			return err
		}
		if s.call.call.way == byHTTP {
			return sendOver(s.call.call.method, s.ServerStream, msg)
		}
		return s.ServerStream.Send(msg)
	})
}
