package tunnel

import (
	"context"
	"errors"
	"sync/atomic"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/proto"

	"github.com/raylink/raylink/runtime/tunnel/internal/codec"
)

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

var _ connect.ServerStream = (*serverStream)(nil)

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
		s.closeSend(err)
		s.inbox.close(err, true)
	})
}

func (s *serverStream) closeSend(err error) {
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
	c.streams-- // a stream counts until its handler returns, even if it ended before
	c.mu.Unlock()
	s.in.Reply(nil, err)
	s.inbox.close(errCallOver, true)
}

// Receive reads the next request message. It returns io.EOF after the last one.
func (s *serverStream) Receive(msg any) error {
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
func (s *serverStream) ReceiveEmpty(to proto.Message) error {
	m, err := s.inbox.receive()
	if err != nil {
		return err
	}
	s.received = len(m.body)
	if to != nil {
		err = codec.Decode(m.body, to)
	}
	m.slab.Free()
	if err != nil {
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
func (c *Conn) onStreamData(h frameHeader, body []byte, t target) error {
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
	slot := c.slotOf(h.id())
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
