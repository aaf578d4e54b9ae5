package tunnel

import (
	"cmp"
	"context"
	"io"
	"sync"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/proto"

	"github.com/raylink/raylink/internal/connecterr"
	"github.com/raylink/raylink/runtime/tunnel/internal/codec"
)

// unaryStream implements connect's client stream on top of a [Call].
type unaryStream struct {
	conn       *Conn
	ctx        context.Context //nolint:containedctx // a stream lives as long as its context, by connect's contract
	info       *connect.CallInfo
	onMetadata func(header, trailer Header)
	call       Call
	done       chan struct{}

	mu       sync.Mutex // guards the fields below
	started  bool
	received bool
	closed   bool
	failed   error
}

var _ connect.ClientStream = (*unaryStream)(nil)

func newUnaryStream(ctx context.Context, c *Conn, req StreamRequest, info *connect.CallInfo) *unaryStream {
	s := &unaryStream{conn: c, ctx: ctx, info: info, onMetadata: req.OnMetadata, done: make(chan struct{})}
	s.call = Call{
		Target: req.Target, Caller: req.Caller, Procedure: req.Procedure, Header: req.Header, Chain: req.Chain,
		raw: true, Done: func(*Call) { close(s.done) },
	}
	return s
}

// SendHeaders does nothing: a unary call is sent as a whole.
func (s *unaryStream) SendHeaders() error { return nil }

// Send sends the request. A unary call has exactly one.
func (s *unaryStream) Send(msg any) error {
	m, err := message(msg)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closed:
		return contextError(context.Canceled, "the stream was closed")
	case s.started:
		return connect.NewError(connect.CodeInternal, "a second request on a unary call")
	}
	return s.start(m)
}

func (s *unaryStream) start(m proto.Message) error {
	s.started = true
	s.call.Request = m
	if s.call.Header, s.failed = requestHeader(s.call.Header, s.info); s.failed != nil {
		return s.failed
	}
	s.failed = s.conn.Start(s.ctx, &s.call)
	if s.info != nil && m != nil {
		s.info.SendStats = connect.MessageStats{Size: s.call.requestBytes}
	}
	return s.failed
}

// CloseSend sends the empty request if no request was sent.
func (s *unaryStream) CloseSend() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.started || s.closed {
		return nil
	}
	return s.start(nil)
}

// Receive waits for the response. A second Receive returns io.EOF or the call's error.
func (s *unaryStream) Receive(msg any) error {
	to, err := message(msg)
	if err != nil {
		return err
	}
	if err := s.CloseSend(); err != nil {
		return err
	}
	s.mu.Lock()
	failed, closed := s.failed, s.closed && !s.started
	s.mu.Unlock()
	switch {
	case failed != nil:
		return failed
	case closed:
		return contextError(context.Canceled, "the stream was closed")
	}
	select {
	case <-s.done:
	case <-s.ctx.Done():
		s.call.Cancel(contextError(s.ctx.Err(), ""))
		<-s.done // closed by Cancel, or by the reader if the answer came first
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.received {
		if s.call.Err != nil {
			return s.call.Err
		}
		return io.EOF
	}
	s.received = true
	if s.info != nil {
		s.call.ResponseHeader.CopyTo(s.info.ResponseHeader())
		s.call.ResponseTrailer.CopyTo(s.info.ResponseTrailer())
		s.info.ReceiveStats = connect.MessageStats{Size: s.call.ResponseBytes}
	}
	if s.onMetadata != nil {
		s.onMetadata(s.call.ResponseHeader, s.call.ResponseTrailer)
	}
	if s.call.Err != nil {
		return s.call.Err
	}
	body := s.call.body
	s.call.body = nil
	if body == nil {
		return nil
	}
	defer body.Free()
	if to == nil {
		return nil
	}
	if err := proto.Unmarshal(body.B, to); err != nil {
		return Undecodable(s.call.Procedure, false, err)
	}
	return nil
}

// Close cancels the call if it is not over.
func (s *unaryStream) Close() error {
	s.mu.Lock()
	s.closed = true
	open := s.started && s.failed == nil
	s.mu.Unlock()
	if open {
		s.call.Cancel(contextError(context.Canceled, "the stream was closed"))
	}
	return nil
}

// transport is a connect client transport over a connection.
type transport struct {
	conn           *Conn
	target, caller string
}

// NewClientStream opens a stream for spec.
func (t *transport) NewClientStream(ctx context.Context, spec connect.Spec) (connect.ClientStream, error) {
	info, _ := connect.CallInfoForClientContext(ctx)
	return t.conn.stream(ctx, StreamRequest{
		Target: t.target, Caller: t.caller, Procedure: spec.Procedure, StreamType: spec.StreamType,
	}, info)
}

// ServerHandler returns a Handler that serves the methods registered on a connect server, whatever
// the target of a call. Every call runs on its own goroutine. An error that is not a
// [connect.Error] reaches the caller as Unknown with its text, and a context error as Canceled or
// DeadlineExceeded. An error received from another node is passed on with its code, text and
// details.
func ServerHandler(server *connect.Server) Handler {
	return ServerHandlerWith(server, func(ctx context.Context) context.Context { return ctx })
}

// ServerHandlerWith is ServerHandler with contexts that with returns for those of calls: for what
// is known of a connection's peer.
func ServerHandlerWith(server *connect.Server, with func(context.Context) context.Context) Handler {
	return &serverHandler{server: server, with: with}
}

type serverHandler struct {
	server *connect.Server
	with   func(context.Context) context.Context
}

// ServeUnary runs the method on its own goroutine, with a copy of the request.
func (h *serverHandler) ServeUnary(in *Incoming) {
	sent := in.conn().reading.request.body
	body := codec.NewBuffer(len(sent))
	body.B = append(body.B, sent...)
	go h.unary(in, body)
}

func (h *serverHandler) unary(in *Incoming, body *codec.Buffer) {
	info := serverInfo(in)
	stream := &unaryServer{in: in, info: info, body: body, size: unknownSize}
	in.conn().runHandler(in, func() error {
		err := h.server.Call(h.with(in.Context()), in.Procedure, info, stream)
		if err == nil && !stream.answered {
			return connect.Errorf(connect.CodeInternal, "%s returned without a response", in.Procedure)
		}
		return err
	}, func(err error) {
		header, headerErr := HeaderFrom(info.ResponseHeader())
		trailer, trailerErr := HeaderFrom(info.ResponseTrailer())
		in.SetHeader(header)
		in.SetTrailer(trailer)
		in.replySized(stream.response, stream.size, cmp.Or(err, unsendableReply(headerErr), unsendableReply(trailerErr)))
		stream.body.Free()
	})
}

// ServeStream runs the method.
func (h *serverHandler) ServeStream(ctx context.Context, in *Incoming, stream connect.ServerStream) error {
	info := serverInfo(in)
	informed := &metadataStream{in: in, info: info, stream: stream}
	err := h.server.Call(h.with(ctx), in.Procedure, info, informed)
	trailer, trailerErr := HeaderFrom(info.ResponseTrailer())
	in.SetTrailer(trailer)
	return cmp.Or(err, informed.head(), unsendableReply(trailerErr))
}

// unsendableReply returns the error of a call whose handler has set metadata that cannot be sent,
// or nil if err is nil.
func unsendableReply(err error) error {
	if err == nil {
		return nil
	}
	return connect.Errorf(connect.CodeInternal, "the response: %s", connecterr.Text(err)).WithCause(err)
}

func serverInfo(in *Incoming) *connect.CallInfo {
	info := &connect.CallInfo{}
	info.Spec = connect.Spec{Procedure: in.Procedure, StreamType: in.StreamType}
	describe(info, in.PeerAddr())
	in.Header().CopyTo(info.RequestHeader())
	return info
}

// unaryServer is the stream that a connect handler of a unary call is given.
type unaryServer struct {
	in       *Incoming
	info     *connect.CallInfo
	body     *codec.Buffer
	read     bool
	answered bool
	response proto.Message
	// size is that of the response, or unknownSize.
	size int
}

func (s *unaryServer) Receive(msg any) error {
	to, err := message(msg)
	if err != nil {
		return err
	}
	if s.read {
		return io.EOF
	}
	s.read = true
	s.info.ReceiveStats = connect.MessageStats{Size: len(s.body.B)}
	if to == nil {
		return nil
	}
	if err := proto.Unmarshal(s.body.B, to); err != nil {
		return Undecodable(s.in.Procedure, true, err)
	}
	return nil
}

func (*unaryServer) SendHeaders() error { return nil }

func (s *unaryServer) Send(msg any) error {
	m, err := message(msg)
	if err != nil {
		return err
	}
	if s.answered {
		return connect.NewError(connect.CodeInternal, "a second response of a unary call")
	}
	s.answered, s.response = true, m
	if m != nil {
		if size, err := codec.Size(m); err == nil { // else encoding the response reports the error
			s.size = size
			s.info.SendStats = connect.MessageStats{Size: size}
		}
	}
	return nil
}

// metadataStream copies the response header of the call info to the tunnel's call.
type metadataStream struct {
	in     *Incoming
	info   *connect.CallInfo
	stream connect.ServerStream
	begun  bool
	wrong  error
}

func (s *metadataStream) Receive(msg any) error { return s.stream.Receive(msg) }

func (s *metadataStream) SendHeaders() error {
	if err := s.head(); err != nil {
		return err
	}
	return s.stream.SendHeaders()
}

func (s *metadataStream) Send(msg any) error {
	if err := s.head(); err != nil {
		return err
	}
	return s.stream.Send(msg)
}

// head sets the response header, once: before the first message, or at the end of a stream without
// messages.
func (s *metadataStream) head() error {
	if !s.begun {
		s.begun = true
		header, err := HeaderFrom(s.info.ResponseHeader())
		s.wrong = unsendableReply(err)
		s.in.SetHeader(header)
	}
	return s.wrong
}
