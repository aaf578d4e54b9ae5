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
		describe(info, c.peerAddr())
	}
	if req.StreamType == connect.StreamTypeUnary {
		return newUnaryStream(ctx, c, req, info), nil
	}
	return &clientStream{conn: c, ctx: ctx, req: req, info: info}, nil
}

// ProtocolName is the Protocol of a [connect.CallInfo] for calls over a tunnel.
const ProtocolName = "raylink"

// EmptyReceiver is implemented by the streams of this package, and by streams that wrap them.
type EmptyReceiver interface {
	// ReceiveEmpty is Receive into a message that is known to be empty: it skips the reset of the
	// message.
	ReceiveEmpty(msg proto.Message) error
}

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

var (
	_ connect.ClientStream = (*clientStream)(nil)
	_ EmptyReceiver        = (*clientStream)(nil)
)

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
		return notRun(tooLarge("the metadata of the call of "+req.Procedure, meta, c.peer.maxHeader, "the receiver's header"))
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
func (s *clientStream) Receive(msg any) error { return receive(s, msg) }

// ReceiveEmpty implements [EmptyReceiver]; nil discards the message.
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
	if err = m.decode(to, &s.inbox.aliases); err != nil {
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
	if slot := c.open.at(s.id); slot != nil && slot.stream == s {
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

// receive empties msg and receives the next message into it; nil discards the message.
func receive(s EmptyReceiver, msg any) error {
	to, err := message(msg)
	if err != nil {
		return err
	}
	if to != nil {
		proto.Reset(to)
	}
	return s.ReceiveEmpty(to)
}

// serverStream is the serving side of a streaming call.
type serverStream struct {
	in           *Incoming
	inbox        inbox
	queue        sendQueue
	headSent     atomic.Bool
	stopWatching func() bool
	received     int
	sent         int
}

var (
	_ connect.ServerStream = (*serverStream)(nil)
	_ EmptyReceiver        = (*serverStream)(nil)
)

func newServerStream(in *Incoming) *serverStream {
	s := &serverStream{in: in}
	s.inbox.open(in.conn(), in.id, in.Procedure)
	s.queue = sendQueue{stream: true, credit: in.conn().peer.streamWindow, window: in.conn().peer.streamWindow}
	return s
}

// watchContext makes the end of the call's context end the stream and unblock its handler. It is
// the only place that does so, whether the cause was a CANCEL, the deadline or the end of the
// connection, so that the handler always gets the same error.
func (s *serverStream) watchContext() {
	s.stopWatching = s.in.ctx.AfterFunc(func() {
		err := contextError(s.in.ctx.Err(), "the caller waits no longer")
		// The inbox first: a handler whose Send fails may return, and ends the inbox with
		// errCallOver, which a concurrent Receive does not convert as Send does.
		s.inbox.close(err, true)
		s.closeQueue(err)
	})
}

func (s *serverStream) closeQueue(err error) {
	c := s.in.conn()
	c.mu.Lock()
	c.out.close(&s.queue, err)
	c.mu.Unlock()
}

// finish sends the final frame with the handler's outcome.
func (s *serverStream) finish(err error) {
	s.stopWatching()
	c := s.in.conn()
	c.mu.Lock()
	c.served.streams-- // a stream counts until its handler returns, even if it ended before
	c.mu.Unlock()
	s.in.Reply(nil, err)
	s.inbox.close(errCallOver, true)
}

// Receive reads the next request message. It returns io.EOF after the last one.
func (s *serverStream) Receive(msg any) error { return receive(s, msg) }

// ReceiveEmpty implements [EmptyReceiver]; nil discards the message.
func (s *serverStream) ReceiveEmpty(to proto.Message) error {
	m, err := s.inbox.receive()
	if err != nil {
		return err
	}
	s.received = len(m.body)
	if err = m.decode(to, &s.inbox.aliases); err != nil {
		return Undecodable(s.in.Procedure, true, err)
	}
	return nil
}

// SendHeaders sends the response header. Further calls do nothing.
func (s *serverStream) SendHeaders() error {
	if s.headSent.Swap(true) {
		return nil
	}
	c := s.in.conn()
	header, _ := s.in.responseMetadata()
	if size := header.size(); size > c.peer.maxHeader {
		return tooLarge("the header of "+s.in.Procedure, size, c.peer.maxHeader, "the receiver's header")
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if s.queue.closeErr != nil {
		return s.sendError(s.queue.closeErr)
	}
	if err := c.overflow(s.in, header.size()); err != nil {
		return err
	}
	c.out.frame(kindHead, s.in.id, header.append(nil))
	c.kick()
	return nil
}

// Send sends the next response message, and the header before the first one.
func (s *serverStream) Send(msg any) error {
	m, err := message(msg)
	if err != nil {
		return err
	}
	if !s.headSent.Load() {
		if header, _ := s.in.responseMetadata(); len(header) == 0 {
			s.headSent.Store(true)
		} else if err := s.SendHeaders(); err != nil {
			return err
		}
	}
	s.sent, err = s.in.conn().sendMessage(&s.queue, s.in.id, s.in.Procedure, m)
	return s.sendError(err)
}

// sendError converts an error of a send to the error that the handler gets. After the final frame
// that is the end of the call's context.
func (s *serverStream) sendError(err error) error {
	if err == nil || !errors.Is(err, errCallOver) {
		return err
	}
	if ended := s.in.ctx.Err(); ended != nil {
		return contextError(ended, "")
	}
	return contextError(context.Canceled, "")
}

// onStreamData handles a DATA frame of a stream.
func (l *readLoop) onStreamData(h frameHeader, body []byte, t destination) error {
	c := l.conn
	tooMuch, err := t.inbox.push(h.flags()&flagSized != 0, body, c.own.maxMessage)
	if err != nil || tooMuch == nil {
		return err
	}
	// The peer knew the limit from the handshake. The stream ends, and the rest of the message is
	// discarded.
	if t.incoming != nil {
		s := t.incoming.stream()
		s.inbox.close(tooMuch, true)
		t.incoming.refuse(tooMuch)
		return nil
	}
	c.mu.Lock()
	slot := c.open.at(h.id())
	var s *clientStream
	if slot != nil {
		s = slot.stream
	}
	c.mu.Unlock()
	if s != nil {
		s.abort(tooMuch)
	}
	return nil
}

// errCallOver is the error of a send on a stream whose call is over.
var errCallOver = errors.New("tunnel: the call is over")

// Transport returns a transport for connect's generated clients. Their calls go to target and come
// from caller. The [connect.CallInfo] of a call supplies the request's header and receives the
// response's header and trailer.
func (c *Conn) Transport(target, caller string) connect.Transport {
	return &transport{conn: c, target: target, caller: caller}
}

// sendMessage sends one message of a stream and returns its encoded size. It blocks for credit, and
// for the writer if much is queued. It returns the queue's reason if the queue is or becomes
// closed.
func (c *Conn) sendMessage(q *sendQueue, id uint32, procedure string, msg proto.Message) (int, error) {
	if size, sent := c.sendSmall(q, id, msg); sent {
		return size, nil
	}
	size, err := codec.Size(msg)
	if err != nil {
		return 0, Unsendable(procedure, c.dialled, msg, err)
	}
	if size > c.peer.maxMessage {
		return 0, MessageTooLarge(procedure, c.dialled, size, c.peer.maxMessage)
	}
	var body *codec.Encoded
	if size > maxBufferedMessage {
		if body, err = codec.Encode(msg, size); err != nil {
			return 0, Unsendable(procedure, c.dialled, msg, err)
		}
		size = body.Size
	}
	m, err := c.queueMessage(q, id, procedure, msg, size, body)
	if m == nil {
		return size, err
	}
	// The end of a stream for any reason (context, deadline, connection) drops its messages, which
	// closes m.sent.
	<-m.sent
	if m.dropped {
		c.mu.Lock()
		over := q.closeErr
		c.mu.Unlock()
		return 0, over
	}
	return size, nil
}

// queueMessage queues a message, in encoded form if it is large. If the message has to wait for
// credit or for the writer, queueMessage returns its message.
func (c *Conn) queueMessage(q *sendQueue, id uint32, procedure string, msg proto.Message, size int, body *codec.Encoded) (*outMessage, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if q.closeErr != nil {
		body.Free()
		return nil, q.closeErr
	}
	o := &c.out
	if body == nil && len(q.messages) == 0 && size+messageCost <= q.credit && len(o.buf) < sendBlockBytes {
		start := o.beginFrame(size)
		b, err := codec.Append(o.buf, msg, size)
		if err != nil {
			o.buf = o.buf[:start]
			return nil, Unsendable(procedure, c.dialled, msg, err)
		}
		o.buf = b
		q.credit -= len(b) - start - headerBytes + messageCost
		q.lastSmall = max(size, 1)
		o.endFrame(start, kindData, 0, id)
		c.kick()
		return nil, nil //nolint:nilnil // nothing to wait for
	}
	if body == nil {
		var err error
		if body, err = codec.Encode(msg, size); err != nil {
			return nil, Unsendable(procedure, c.dialled, msg, err)
		}
	}
	m := &outMessage{id: id, kind: kindData, body: body, sent: make(chan struct{})}
	o.push(q, m)
	c.kick()
	return m, nil
}

// sendSmall is the fast path for a small message that follows another on a stream with enough
// credit and room. It encodes without computing the size first, which would cost as much as the
// encoding. If the fast path does not apply it returns false and has queued nothing.
func (c *Conn) sendSmall(q *sendQueue, id uint32, msg proto.Message) (size int, sent bool) {
	if msg == nil {
		return 0, false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	o := &c.out
	if q.lastSmall == 0 || q.closeErr != nil || len(q.messages) > 0 || len(o.buf) >= sendBlockBytes {
		return 0, false
	}
	start := o.beginFrame(2 * q.lastSmall)
	b, err := codec.AppendUnsized(o.buf, msg)
	size = len(b) - start - headerBytes
	if err != nil || size > maxBufferedMessage || size+messageCost > q.credit || size > c.peer.maxMessage {
		o.buf, q.lastSmall = o.buf[:start], 0
		return 0, false
	}
	o.buf, q.lastSmall = b, max(size, 1)
	q.credit -= size + messageCost
	o.endFrame(start, kindData, 0, id)
	c.kick()
	return size, true
}
