package tunnel

import (
	"encoding/binary"
	"sync/atomic"
)

// outbox is what a connection has still to write. Small frames are encoded straight into one
// buffer, in order. A message that is large, or that waits for credit, is a parcel: its fragments
// go after the small frames of their batch, up to turnBytes from each lane in turn. Within a lane
// parcels go one after the other. It is guarded by the connection's lock.
type outbox struct {
	buf   []byte
	spare []byte
	// calls is how many of a dialling side's calls were queued since something was taken.
	calls int
	// usual is how large buf was the last time, so that it need not grow to that again step by
	// step.
	usual int
	// batch is what the writing goroutine has in hand.
	batch batch
	// ring has the lanes of which a fragment may be sent now.
	ring []*lane
	// requests are the lanes of unary requests that have parcels.
	requests map[laneKey]*lane
	// maxFragment is the largest that the peer takes.
	maxFragment int
	// replyBytes is the size of the unary responses among the parcels that has not been taken yet;
	// encoding, of those that are being encoded.
	replyBytes, encoding int
	// pongs is how many PONGs are in buf.
	pongs int
	// full says that buf holds more than fullBytes: an accepting side reads nothing more then, see
	// [Conn.awaitWriter].
	full atomic.Bool
	// replyWindow is what the large responses on their way take of the peer's window; replies wait
	// for it in order.
	replyWindow int
	replies     []*parcel
	// leaving are the large responses that have not been taken yet, by their calls, so that a
	// CANCEL can stop them.
	leaving map[uint32]*parcel

	// writing says that a goroutine is at it. corked says that the reading goroutine is in the
	// middle of what it has read and will see to the writing afterwards, so that the answers to one
	// read go out in one write.
	writing bool
	corked  bool
}

const (
	// inlineBytes is the largest message that is encoded into the common buffer; copying it costs
	// less than another buffer.
	inlineBytes = 8 << 10
	// roomBytes is how much the common buffer may hold before a stream's Send waits for the writer.
	roomBytes = 256 << 10
	// fullBytes is how much the common buffer may hold before an accepting side stops reading: what
	// it reads makes it write, and a peer that doesn't read would make it hold all of that.
	fullBytes = 1 << 20
	// maxPongs is how many PONGs a dialling side holds for a peer that doesn't read. It can't stop
	// reading, for the peer may have stopped until its answers are read; so one more ends the
	// connection.
	maxPongs = 1 << 10
	// batchBytes is how much of the parcels one write takes.
	batchBytes = 512 << 10
	// turnBytes is how much of one lane goes before others have their turn. Were it one fragment,
	// all large messages would be under way at once, and both sides would go through more memory
	// than their processors' caches hold; a message that is much larger still holds nobody up for
	// long.
	turnBytes = 1 << 20
)

// laneKey names the order that unary requests keep.
type laneKey struct{ target, caller string }

// lane is a sequence of parcels that go one after the other.
type lane struct {
	parcels []*parcel
	ringed  bool
	// turn is how much was taken of it in a row.
	turn int
	// The rest is for a stream's lane.
	stream bool
	// usual is the size of the last message, if it was a small one.
	usual  int
	credit int
	// window is the most credit that there has been at once.
	window int
	// over is set when nothing more can be sent, and says why.
	over error
}

// parcel is one outgoing message on its way.
type parcel struct {
	id    uint32
	kind  kind
	flags uint8
	// meta stands before the message in its first frame.
	meta []byte
	body *encoded
	off  int
	lane *lane
	key  laneKey
	// reply marks a unary response; reserved, that it has its part of the peer's window.
	reply    bool
	reserved bool
	started  bool
	// finished: all of it was taken by the writer, or it was dropped.
	finished bool
	dropped  bool
	// borrowed: the writer has a fragment in hand, so it frees the body.
	borrowed bool
	// sent, where there is one, is closed when the parcel is finished.
	sent chan struct{}
}

func (p *parcel) rest() int { return p.body.size - p.off }

// finish notes that nothing of a parcel is left to be sent.
func (o *outbox) finish(p *parcel) {
	p.finished = true
	if o.leaving[p.id] == p {
		delete(o.leaving, p.id)
	}
	if p.sent != nil {
		close(p.sent)
	}
}

// ready says that something of the lane may be sent now.
func (l *lane) ready() bool { return len(l.parcels) > 0 && l.room(floorMaxFragment) >= 0 }

// room is how many bytes of the first parcel may go now in one frame, or -1 if not even its first
// frame may.
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
		// The first frame has the size alone. Of a message that fits the window it waits until all
		// of it can follow: the receiver gives credit back by the quarter of its window at the
		// latest.
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

// frame appends a whole frame.
func (o *outbox) frame(k kind, id uint32, body []byte) {
	o.reserve(len(body))
	o.buf = makeHeader(k, 0, id, len(body)).append(o.buf)
	o.buf = append(o.buf, body...)
}

// reserve makes room in the common buffer for a frame of n bytes.
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

// begin begins a frame of about n bytes, and returns where. patch completes it.
func (o *outbox) begin(n int) int {
	o.reserve(n)
	start := len(o.buf)
	o.buf = append(o.buf, 0, 0, 0, 0, 0, 0, 0, 0)
	return start
}

// patch fills in the header of the frame that was begun at start.
func (o *outbox) patch(start int, k kind, flags uint8, id uint32) {
	binary.LittleEndian.PutUint64(o.buf[start:], uint64(makeHeader(k, flags, id, len(o.buf)-start-headerBytes)))
}

// push appends a parcel to a lane.
func (o *outbox) push(l *lane, p *parcel) {
	p.lane = l
	l.parcels = append(l.parcels, p)
	o.wake(l)
}

// wake puts a lane into the ring if it may send.
func (o *outbox) wake(l *lane) {
	if !l.ringed && l.ready() {
		l.ringed = true
		o.ring = append(o.ring, l)
	}
}

// pushRequest appends a unary request to the lane of its order.
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

// pushReply appends a unary response. Those of more than one frame wait for their part of the
// peer's window, so that it holds few unfinished ones, and always room to finish them.
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

// drop takes back what has not been sent of a parcel.
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

// close drops all of a lane, and refuses what comes later.
func (o *outbox) close(l *lane, why error) {
	if l.over == nil {
		l.over = why
	}
	for len(l.parcels) > 0 {
		o.drop(l.parcels[0])
	}
}

// settle forgets the lane of a unary request when it is empty.
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
