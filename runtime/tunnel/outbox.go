package tunnel

import (
	"encoding/binary"
	"sync/atomic"
)

// outbox is the outgoing side of a connection. Small frames are encoded directly into one buffer,
// in order. A message that is large, or that waits for credit, is a parcel: it waits in a lane, a
// FIFO queue. Its fragments follow the small frames of a batch, with up to turnBytes from each lane
// in round-robin order. The outbox is guarded by Conn.mu.
type outbox struct {
	buf   []byte
	spare []byte
	// calls is the number of CALLs of a dialling side queued since the last batch was collected.
	calls int
	// usual is the size of the last batch's buffer, so that the next one is allocated at about that
	// size.
	usual int
	// batch is the batch being written.
	batch batch
	// ring holds the lanes that have a fragment ready to be sent.
	ring []*lane
	// requests holds the non-empty lanes of unary requests.
	requests map[laneKey]*lane
	// maxFragment is the largest fragment that the peer accepts.
	maxFragment int
	// replyBytes is the size of the queued unary responses that the writer has not taken yet.
	// encoding is the size of the responses that are being encoded.
	replyBytes, encoding int
	// pongs is the number of PONGs in buf.
	pongs int
	// full is set while buf holds more than fullBytes. An accepting side then stops reading, see
	// [Conn.awaitWriter].
	full atomic.Bool
	// replyWindow is the part of the peer's window used by large responses in flight. replies waits
	// for the window in FIFO order.
	replyWindow int
	replies     []*parcel
	// leaving holds the large responses that the writer has not finished taking, by call id, so
	// that a CANCEL can stop them.
	leaving map[uint32]*parcel

	// writing is set while a goroutine writes. corked is set while the reader is processing a
	// burst; it flushes at the end, so that all answers to one read go out in one write.
	writing bool
	corked  bool
}

const (
	// inlineBytes is the largest message encoded into the common buffer. Up to this size a copy
	// costs less than a separate buffer.
	inlineBytes = 8 << 10
	// roomBytes is the size of the common buffer at which Send on a stream blocks for the writer.
	roomBytes = 256 << 10
	// fullBytes is the size of the common buffer at which an accepting side stops reading. What it
	// reads makes it write, so a peer that never reads could otherwise make the buffer grow without
	// bound.
	fullBytes = 1 << 20
	// maxPongs is the number of PONGs that a dialling side queues for a peer that does not read. It
	// cannot stop reading, since the peer may have stopped reading until its answers are read; one
	// more PING ends the connection.
	maxPongs = 1 << 10
	// batchBytes is how much of the parcels one write takes.
	batchBytes = 512 << 10
	// turnBytes is how much is sent from one lane before the next lane's turn. With a single
	// fragment per turn all large messages would be in flight at once, and both sides would touch
	// more memory than fits their CPU caches. A far larger message still delays others only
	// briefly.
	turnBytes = 1 << 20
)

// laneKey identifies the unary requests whose order is preserved.
type laneKey struct{ target, caller string }

// lane is a FIFO queue of outgoing messages.
type lane struct {
	parcels []*parcel
	ringed  bool
	// turn is the number of bytes taken from it in the current turn.
	turn int
	// The fields below are for the lanes of streams.
	stream bool
	// usual is the size of the last message if it was small, else 0.
	usual  int
	credit int
	// window is the largest credit seen so far.
	window int
	// over is set once nothing more can be sent, and is the reason.
	over error
}

// parcel is one outgoing message that is queued.
type parcel struct {
	id    uint32
	kind  kind
	flags uint8
	// meta precedes the message in its first frame.
	meta []byte
	body *encoded
	off  int
	lane *lane
	key  laneKey
	// reply is set for a unary response, reserved once it has its share of the peer's window.
	reply    bool
	reserved bool
	started  bool
	// finished is set when the writer has taken all of it, or it was dropped.
	finished bool
	dropped  bool
	// borrowed is set while the writer holds a fragment; the writer then frees the body.
	borrowed bool
	// sent, if not nil, is closed when the parcel is finished.
	sent chan struct{}
}

func (p *parcel) rest() int { return p.body.size - p.off }

// finish marks a parcel as finished and wakes its sender.
func (o *outbox) finish(p *parcel) {
	p.finished = true
	if o.leaving[p.id] == p {
		delete(o.leaving, p.id)
	}
	if p.sent != nil {
		close(p.sent)
	}
}

// ready reports whether a frame of the lane may be sent now.
func (l *lane) ready() bool { return len(l.parcels) > 0 && l.room(floorMaxFragment) >= 0 }

// room returns how many bytes of the first parcel may be sent now in one frame, or -1 if the lane
// must wait for credit. The lane must not be empty.
func (l *lane) room(maxFragment int) int {
	p := l.parcels[0]
	rest := p.rest()
	bounded := l.stream && guarded
	switch {
	case p.started:
		if bounded && l.credit <= 0 {
			return -1
		}
	case rest > wholeBytes:
		// The first frame of a large message carries the size only. If the message fits the window,
		// it waits for enough credit that the fragments can follow without a pause: the receiver
		// grants credit again after a quarter of its window at the latest.
		if need := rest + messageCost + varintBytes; bounded && l.credit < min(need, l.window/2) {
			return -1
		}
		return 0
	default:
		if bounded && l.credit < rest+messageCost {
			return -1
		}
		return rest
	}
	if rest = min(rest, maxFragment); bounded {
		rest = min(rest, l.credit)
	}
	return rest
}

// frame appends a complete frame.
func (o *outbox) frame(k kind, id uint32, body []byte) {
	o.reserve(len(body))
	o.buf = makeHeader(k, 0, id, len(body)).append(o.buf)
	o.buf = append(o.buf, body...)
}

// reserve makes room in the common buffer for a frame with a body of n bytes.
func (o *outbox) reserve(n int) {
	need := len(o.buf) + headerBytes + n
	if need > fullBytes {
		o.full.Store(true)
	}
	if need <= cap(o.buf) {
		return
	}
	larger := append(lend(max(need, 2*cap(o.buf), o.usual)), o.buf...)
	recycle(o.buf)
	o.buf = larger
}

// begin starts a frame with a body of about n bytes and returns its offset. The body is then
// appended to buf, and patch completes the frame.
func (o *outbox) begin(n int) int {
	o.reserve(n)
	start := len(o.buf)
	o.buf = append(o.buf, 0, 0, 0, 0, 0, 0, 0, 0)
	return start
}

// patch writes the header of the frame started at start.
func (o *outbox) patch(start int, k kind, flags uint8, id uint32) {
	binary.LittleEndian.PutUint64(o.buf[start:], uint64(makeHeader(k, flags, id, len(o.buf)-start-headerBytes)))
}

// push appends a parcel to a lane.
func (o *outbox) push(l *lane, p *parcel) {
	p.lane = l
	l.parcels = append(l.parcels, p)
	o.wake(l)
}

// wake adds a lane to the ring if it has a frame ready.
func (o *outbox) wake(l *lane) {
	if !l.ringed && l.ready() {
		l.ringed = true
		o.ring = append(o.ring, l)
	}
}

// pushRequest appends a unary request to the lane of its key.
func (o *outbox) pushRequest(p *parcel) {
	l := o.requests[p.key]
	if l == nil {
		l = &lane{}
		if o.requests == nil {
			o.requests = make(map[laneKey]*lane)
		}
		o.requests[p.key] = l
	}
	o.push(l, p)
}

// pushReply queues a unary response. A response of more than one frame waits for its share of the
// peer's window, so that the peer holds few partial responses and always has room to complete them.
func (o *outbox) pushReply(p *parcel, window int) {
	p.reply = true
	o.replyBytes += p.rest()
	if p.rest() <= wholeBytes {
		o.push(&lane{}, p)
		return
	}
	if o.leaving == nil {
		o.leaving = make(map[uint32]*parcel)
	}
	o.leaving[p.id] = p
	o.replies = append(o.replies, p)
	o.admitReplies(window)
}

func (o *outbox) admitReplies(window int) {
	for len(o.replies) > 0 {
		p := o.replies[0]
		if o.replyWindow > 0 && o.replyWindow+p.rest() > window {
			return
		}
		o.replyWindow += p.rest()
		p.reserved = true
		o.replies[0] = nil
		o.replies = o.replies[1:]
		o.push(&lane{}, p)
	}
}

// drop removes the unsent rest of a parcel.
func (o *outbox) drop(p *parcel) {
	if p == nil || p.finished {
		return
	}
	if p.reply {
		o.replyBytes -= p.rest()
		if p.reserved && !p.started {
			o.replyWindow -= p.rest()
		}
	}
	if p.lane == nil {
		o.replies = without(o.replies, p)
	} else {
		p.lane.parcels = without(p.lane.parcels, p)
		o.settle(p)
		o.wake(p.lane)
	}
	p.dropped = true
	o.finish(p)
	if !p.borrowed {
		p.body.free()
		p.body = nil
	}
}

// close drops everything in a lane, and makes later sends fail with why.
func (o *outbox) close(l *lane, why error) {
	if l.over == nil {
		l.over = why
	}
	for len(l.parcels) > 0 {
		o.drop(l.parcels[0])
	}
}

// settle removes the lane of a unary request once it is empty.
func (o *outbox) settle(p *parcel) {
	if p.kind == kindCall && len(p.lane.parcels) == 0 {
		delete(o.requests, p.key)
	}
}

func without(list []*parcel, p *parcel) []*parcel {
	for i := range list {
		if list[i] == p {
			copy(list[i:], list[i+1:])
			list[len(list)-1] = nil
			return list[:len(list)-1]
		}
	}
	return list
}
