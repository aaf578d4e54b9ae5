package tunnel

import (
	"errors"

	"google.golang.org/protobuf/proto"

	"github.com/raylink/raylink/runtime/tunnel/internal/codec"
)

// errCallOver is the error of a send on a stream whose call is over.
var errCallOver = errors.New("tunnel: the call is over")

// sendMessage sends one message of a stream and returns its encoded size. It blocks for credit, and
// for the writer if much is queued. It returns the queue's reason if the queue is or becomes
// closed.
func (c *Conn) sendMessage(q *sendQueue, id uint32, procedure string, msg proto.Message) (int, error) {
	if size, sent := c.sendSmall(q, id, msg); sent {
		return size, nil
	}
	size, err := codec.Size(msg)
	if err != nil {
		return 0, c.cannotEncode(procedure, msg, err)
	}
	if size > c.peer.maxMessage {
		return 0, MessageTooLarge(procedure, c.dialled, size, c.peer.maxMessage)
	}
	var body *codec.Encoded
	if size > inlineBytes {
		if body, err = codec.Encode(msg, size); err != nil {
			return 0, c.cannotEncode(procedure, msg, err)
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
			return nil, c.cannotEncode(procedure, msg, err)
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
			return nil, c.cannotEncode(procedure, msg, err)
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
	if err != nil || size > inlineBytes || size+messageCost > q.credit || size > c.peer.maxMessage {
		o.buf, q.lastSmall = o.buf[:start], 0
		return 0, false
	}
	o.buf, q.lastSmall = b, max(size, 1)
	q.credit -= size + messageCost
	o.endFrame(start, kindData, 0, id)
	c.kick()
	return size, true
}
