package tunnel

import (
	"errors"

	"google.golang.org/protobuf/proto"
)

// errOver is the error of a send on a stream whose call is over.
var errOver = errors.New("tunnel: the call is over")

// sendMessage sends one message of a stream and returns its encoded size. It blocks for credit, and
// for the writer if much is queued. It returns the lane's reason if the lane is or becomes closed.
func (c *Conn) sendMessage(l *lane, id uint32, procedure string, msg proto.Message) (int, error) {
	if size, sent := c.sendLike(l, id, msg); sent {
		return size, nil
	}
	size, err := sizeOf(msg)
	if err != nil {
		return 0, c.cannotEncode(procedure, msg, err)
	}
	if size > c.peer.maxMessage {
		return 0, MessageTooLarge(procedure, c.dialled, size, c.peer.maxMessage)
	}
	var body *encoded
	if size > inlineBytes {
		if body, err = encode(msg, size); err != nil {
			return 0, c.cannotEncode(procedure, msg, err)
		}
		size = body.size
	}
	p, err := c.queueMessage(l, id, procedure, msg, size, body)
	if p == nil {
		return size, err
	}
	// The end of a stream for any reason (context, deadline, connection) drops its parcels, which
	// closes p.sent.
	<-p.sent
	if p.dropped {
		c.mu.Lock()
		over := l.over
		c.mu.Unlock()
		return 0, over
	}
	return size, nil
}

// queueMessage queues a message, in encoded form if it is large. If the message has to wait for
// credit or for the writer, queueMessage returns its parcel.
func (c *Conn) queueMessage(l *lane, id uint32, procedure string, msg proto.Message, size int, body *encoded) (*parcel, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if l.over != nil {
		body.free()
		return nil, l.over
	}
	o := &c.out
	if body == nil && len(l.parcels) == 0 && size+messageCost <= l.credit && len(o.buf) < roomBytes {
		start := o.begin(size)
		b, err := appendMessage(o.buf, msg, size)
		if err != nil {
			o.buf = o.buf[:start]
			return nil, c.cannotEncode(procedure, msg, err)
		}
		o.buf = b
		l.credit -= len(b) - start - headerBytes + messageCost
		l.usual = max(size, 1)
		o.patch(start, kindData, 0, id)
		c.kick()
		return nil, nil //nolint:nilnil // nothing to wait for
	}
	if body == nil {
		var err error
		if body, err = encode(msg, size); err != nil {
			return nil, c.cannotEncode(procedure, msg, err)
		}
	}
	p := &parcel{id: id, kind: kindData, body: body, sent: make(chan struct{})}
	o.push(l, p)
	c.kick()
	return p, nil
}

// sendLike is the fast path for a small message that follows another on a stream with enough credit
// and room. It encodes without computing the size first, which would cost as much as the encoding.
// If the fast path does not apply it returns false and has queued nothing.
func (c *Conn) sendLike(l *lane, id uint32, msg proto.Message) (size int, sent bool) {
	if msg == nil {
		return 0, false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	o := &c.out
	if l.usual == 0 || l.over != nil || len(l.parcels) > 0 || len(o.buf) >= roomBytes {
		return 0, false
	}
	start := o.begin(2 * l.usual)
	b, err := marshal(proto.MarshalOptions{}, o.buf, msg)
	size = len(b) - start - headerBytes
	if err != nil || size > inlineBytes || size+messageCost > l.credit || size > c.peer.maxMessage {
		o.buf, l.usual = o.buf[:start], 0
		return 0, false
	}
	o.buf, l.usual = b, max(size, 1)
	l.credit -= size + messageCost
	o.patch(start, kindData, 0, id)
	c.kick()
	return size, true
}
