package tunnel

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/proto"

	"github.com/raylink/raylink/runtime/tunnel/internal/codec"
)

// StreamRequest describes the call of a new stream.
type StreamRequest struct {
	// Target is the callee, Caller the calling entity, and Procedure the method, as
	// "/package.Service/Method".
	Target, Caller, Procedure string
	// StreamType is the shape of the call.
	StreamType connect.StreamType
	// Header is sent with the call; nil means none.
	Header Header
	// OnMetadata, if not nil, receives the response's header before the first Receive returns, and
	// its trailer before the Receive that reports the end returns.
	OnMetadata func(header, trailer Header)
	// Chain is sent with the call and opaque to the tunnel; nil means none.
	Chain []byte
}

// Stream makes a stream for a call of any shape. The call begins with the first Send, Receive,
// CloseSend or SendHeaders, and ends when ctx does. A [connect.CallInfo] in ctx is ignored; it is
// for connect's clients, see [Conn.Transport].
func (c *Conn) Stream(ctx context.Context, req StreamRequest) (connect.ClientStream, error) {
	return c.stream(ctx, req, nil)
}

func (c *Conn) stream(ctx context.Context, req StreamRequest, info *connect.CallInfo) (connect.ClientStream, error) {
	c.mu.Lock()
	err := c.refusalError()
	c.mu.Unlock()
	if err == nil && ctx.Err() != nil {
		err = notRun(contextError(ctx.Err(), ""))
	}
	if err != nil {
		return nil, err
	}
	if info != nil {
		describe(info, c.nc.RemoteAddr().String())
	}
	if req.StreamType == connect.StreamTypeUnary {
		return newUnaryStream(ctx, c, req, info), nil
	}
	return &clientStream{conn: c, ctx: ctx, req: req, info: info}, nil
}

// ProtocolName is the Protocol of a [connect.CallInfo] for calls over a tunnel.
const ProtocolName = "raylink"

func describe(info *connect.CallInfo, peer string) {
	info.PeerAddr, info.Protocol, info.Codec = peer, ProtocolName, connect.CodecNameProto
	info.RequestEncoding, info.ResponseEncoding = connect.CompressionNameIdentity, connect.CompressionNameIdentity
}

// clientStream is the calling side of a streaming call.
type clientStream struct {
	conn *Conn
	ctx  context.Context //nolint:containedctx // a stream lives as long as its context, by connect's contract
	req  StreamRequest
	info *connect.CallInfo

	// opened reports, without the lock, that the call has begun successfully.
	opened atomic.Bool

	beginMu sync.Mutex // held while the call begins; guards begun, failed and closed
	begun   bool
	failed  error
	closed  bool

	id uint32
	// gotHead is set once the response's header has arrived. It is owned by the connection's
	// reader.
	gotHead      bool
	inbox        inbox
	queue        sendQueue
	stopWatching func() bool
}

var _ connect.ClientStream = (*clientStream)(nil)

// ErrSendAfterCloseSend is returned by a stream's Send after CloseSend.
var ErrSendAfterCloseSend error = connect.NewError(connect.CodeInternal, "Send after CloseSend")

// SendHeaders begins the call. Further calls return the result of the first.
func (s *clientStream) SendHeaders() error {
	if s.opened.Load() {
		return nil
	}
	s.beginMu.Lock()
	defer s.beginMu.Unlock()
	switch {
	case s.begun:
		return s.failed
	case s.closed:
		return contextError(context.Canceled, "the stream was closed")
	}
	s.begun = true
	s.failed = s.open()
	s.opened.Store(s.failed == nil)
	return s.failed
}

func (s *clientStream) open() error {
	c, req := s.conn, &s.req
	header, err := requestHeader(req.Header, s.info)
	if err != nil {
		return err
	}
	meta := metaSize(req.Target, req.Caller, req.Procedure, header, req.Chain)
	if meta > c.peer.maxHeader {
		return notRun(tooLarge("what goes with the call of "+req.Procedure, meta, c.peer.maxHeader, "the receiver's header"))
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.acquireWindow(s.ctx, 0); err != nil {
		return err
	}
	s.id = c.allocateID(slot{stream: s})
	s.inbox.open(c, s.id, req.Procedure)
	s.queue = sendQueue{stream: true, credit: c.peer.streamWindow, window: c.peer.streamWindow}
	o := &c.out
	names := [3]string{req.Target, req.Caller, req.Procedure}
	numbers := c.interner.intern(o, names, &c.peer)
	start := o.beginFrame(meta)
	flags, b := appendCall(s.ctx, numbers.append(o.buf, names), req.StreamType, header, req.Chain)
	o.buf = b
	o.endFrame(start, kindCall, flags, s.id)
	s.stopWatching = context.AfterFunc(s.ctx, func() { s.abort(contextError(s.ctx.Err(), "")) })
	c.calls.Add(1)
	c.startKeepalive()
	c.kick()
	return nil
}

// Send sends the next request message. It returns io.EOF if the server has ended the call; Receive
// then returns the outcome.
func (s *clientStream) Send(msg any) error {
	m, err := message(msg)
	if err != nil {
		return err
	}
	if err := s.SendHeaders(); err != nil {
		return err
	}
	size, err := s.conn.sendMessage(&s.queue, s.id, s.req.Procedure, m)
	if errors.Is(err, errCallOver) {
		return io.EOF
	}
	if err == nil && s.info != nil {
		s.info.SendStats = connect.MessageStats{Size: size}
	}
	return err
}

// CloseSend half-closes the stream: no more requests follow.
func (s *clientStream) CloseSend() error {
	if err := s.SendHeaders(); err != nil {
		return err
	}
	c := s.conn
	c.mu.Lock()
	defer c.mu.Unlock()
	if s.queue.closeErr == nil {
		s.queue.closeErr = ErrSendAfterCloseSend
		c.out.frame(kindCloseSend, s.id, nil)
		c.kick()
	}
	return nil
}

// Receive reads the next response message. At the end of the stream it returns io.EOF or the call's
// error.
func (s *clientStream) Receive(msg any) error {
	to, err := message(msg)
	if err != nil {
		return err
	}
	if to != nil {
		proto.Reset(to)
	}
	return s.ReceiveEmpty(to)
}

// ReceiveEmpty is Receive into a message that is already empty; nil discards the message.
func (s *clientStream) ReceiveEmpty(to proto.Message) error {
	if err := s.SendHeaders(); err != nil {
		return err
	}
	m, err := s.inbox.receive()
	if err != nil {
		s.deliverMetadata(err)
		s.stopWatching()
		return err
	}
	if s.info != nil {
		s.info.ReceiveStats = connect.MessageStats{Size: len(m.body)}
	}
	if to != nil {
		err = codec.Decode(m.body, to)
	}
	m.slab.Free()
	if err != nil {
		wrong := Undecodable(s.req.Procedure, false, err)
		s.abort(wrong)
		return wrong
	}
	if s.req.StreamType == connect.StreamTypeClient {
		return s.receiveEnd()
	}
	s.deliverMetadata(nil)
	return nil
}

// receiveEnd waits for the end of a stream with a single response, since its outcome and trailer
// are known only then.
func (s *clientStream) receiveEnd() error {
	m, err := s.inbox.receive()
	if err == nil {
		m.slab.Free()
		err = connect.Errorf(connect.CodeInternal, "%s sent more than one response", s.req.Procedure)
		s.abort(err)
	}
	s.deliverMetadata(err)
	s.stopWatching()
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// deliverMetadata delivers received metadata to the caller, on the caller's goroutine. err is the
// error that Receive is about to return. A trailer is delivered only with the end of the stream,
// even if it has arrived earlier.
func (s *clientStream) deliverMetadata(err error) {
	if s.info == nil && s.req.OnMetadata == nil {
		return
	}
	s.inbox.mu.Lock()
	header, trailer := s.inbox.header, s.inbox.trailer
	s.inbox.header = nil
	if err != nil {
		s.inbox.trailer = nil
	} else {
		trailer = nil
	}
	s.inbox.mu.Unlock()
	if s.info != nil {
		header.CopyTo(s.info.ResponseHeader())
		trailer.CopyTo(s.info.ResponseTrailer())
	}
	if s.req.OnMetadata != nil && len(header)+len(trailer) > 0 {
		s.req.OnMetadata(header, trailer)
	}
}

// requestHeader returns the header to send: given, followed by the header of the caller's
// [connect.CallInfo] if there is one.
func requestHeader(given Header, info *connect.CallInfo) (Header, error) {
	if info == nil || info.RequestHeader().Len() == 0 {
		return given, nil
	}
	more, err := HeaderFrom(info.RequestHeader())
	if err != nil || len(given) == 0 {
		return more, err
	}
	return append(append(Header{}, given...), more...), nil
}

// Close cancels the call if it is not over.
func (s *clientStream) Close() error {
	s.beginMu.Lock()
	s.closed = true
	begun := s.begun && s.failed == nil
	s.beginMu.Unlock()
	if begun {
		s.stopWatching()
		s.abort(contextError(context.Canceled, "the stream was closed"))
	}
	return nil
}

// abort ends the stream from this side with err and sends CANCEL.
func (s *clientStream) abort(err error) {
	c := s.conn
	c.mu.Lock()
	if slot := c.slotOf(s.id); slot != nil && slot.stream == s {
		slot.stream = nil
		c.out.close(&s.queue, err)
		c.out.frame(kindCancel, s.id, nil)
		c.kick()
	}
	c.mu.Unlock()
	s.inbox.close(err, true)
}

// message converts a message of a connect stream, which may be of any type, to a protobuf message.
func message(msg any) (proto.Message, error) {
	if msg == nil {
		return nil, nil //nolint:nilnil // nil is the empty message
	}
	m, ok := msg.(proto.Message)
	if !ok {
		return nil, connect.NewError(connect.CodeInternal, fmt.Sprintf("the tunnel carries protobuf messages, not %T", msg))
	}
	return m, nil
}
