package runtime

import (
	"container/list"
	"context"
	"net/http"
	"sync"
	"time"

	"connectrpc.com/connect/v2"
)

// bodies bounds what a host holds of messages over HTTP, of all its connections together: of
// requests while they are read, of what they are decompressed to, or of responses while they are
// written. A mailbox counts requests after that.
//
// What callers may rely on:
//
//   - What is reserved never exceeds limit, whatever is asked for, nor what waits parked, where
//     what
//     waits is in memory already.
//   - A message whose size is known (Content-Length, the length of an envelope, a response)
//     reserves
//     all of it at once, before a byte of it is read. It never waits again, so that it can finish.
//   - A message whose size is not known grows by steps. A step is granted only if the largest of
//     those
//     that grow can still become as large as any message may be, when the others hold on to what they
//     have. So there is always one that can finish, and messages never wait for each other in a cycle.
//   - Those that wait are served first in, first out. Steps of messages that hold room come before
//     messages that hold none, so what has begun finishes.
//   - Small messages have room of their own, of which one may take no more than twice what it
//     leaves.
//     So large ones, and small ones that never end, don't keep others out. Where it is full they wait
//     with the large ones.
//   - What is slow can't block others for long: while messages wait, one that has held its room for
//     longer
//     than patience and what it takes at bodyRate is interrupted. Its call fails.
//   - Nothing waits longer than bodyWait, or than its call: it is refused with resource_exhausted.
type bodies struct {
	what string
	// large and small are the bounds of the two kinds, most and smallMost what one message may
	// take.
	large, small, most, smallMost int
	// parked bounds what waits, in bytes; 0 where what waits is not in memory yet.
	parked int

	mu sync.Mutex // guards what follows, and the fields of heldBody
	// inLarge and inSmall are reserved. growing is the part of inLarge that messages of unknown
	// size hold.
	inLarge, inSmall, growing int
	// holders is the ring of all messages that hold room.
	holders heldBody
	// queue is of *heldBody: those that wait. waiting is their size.
	queue   list.List
	waiting int
	// sweeper interrupts what is slow, while the queue is not empty.
	sweeper *time.Timer
}

const (
	// bodyFactor is what a message takes while it is read or written, in its own size: buffers grow
	// by doubling.
	bodyFactor = 2
	// bodyWait is how long a message waits for room at most.
	bodyWait = 30 * time.Second
	// bodyPatience is how long a message may hold room, be it ever so small, while others wait, and
	// bodyRate how much may come in a second of what is larger, in bytes.
	bodyPatience = 5 * time.Second
	bodyRate     = 1 << 20
	// bodySweep is how often slow messages are looked for, while others wait.
	bodySweep = time.Second
	// bodyRoom is for what is around a message.
	bodyRoom = 64 << 10
	// bodyFloor is what there is for messages at least: where the largest are small, many come at
	// once.
	bodyFloor = 4 << 20
	// smallBody is how large a small message is at most, in bytes.
	smallBody = 64 << 10
	// smallPart is the part of all room that only small messages get.
	smallPart = 8
)

// newBodies makes a bound of twice what one of the largest messages takes.
func newBodies(what string, maxMessage int) *bodies {
	most := bodyFactor * (maxMessage + bodyRoom)
	all := max(bodyFloor, 2*most)
	b := &bodies{what: what, most: most, small: all / smallPart}
	b.large = all - b.small
	b.smallMost = min(bodyFactor*smallBody, b.small/smallPart)
	b.holders.next, b.holders.previous = &b.holders, &b.holders
	return b
}

// limit is how many bytes may be reserved.
func (b *bodies) limit() int { return b.large + b.small }

// heldBody is what one message holds, of a call which has one at a time.
type heldBody struct {
	of  *bodies
	ctx context.Context //nolint:containedctx // as long as its call
	// interrupt makes the call fail that reads or writes the message; nil if it can't. It is not
	// called after end.
	interrupt func()

	// What follows is guarded by the lock of bodies.

	inLarge, inSmall int
	// grows says that the message's size is not known.
	grows bool
	// since is when it got its first room, without the time that it waited since.
	since time.Time
	// whole says that it waits for nothing of the other side any more.
	whole bool
	// slow says that it was interrupted, over that its call has ended.
	slow, over bool
	// place is where it waits for want bytes; granted is closed when it has them.
	place          *list.Element
	want           int
	granted        chan struct{}
	waits          time.Time
	next, previous *heldBody

	// interrupting is held while interrupt runs, and by end.
	interrupting sync.Mutex
}

// reserve makes the room of a message that of one of size bytes, and may block. grows says that the
// message may need more later. Only one goroutine at a time may call it.
func (h *heldBody) reserve(size int, grows bool) error {
	b, want := h.of, size*bodyFactor
	if !guarded {
		return nil
	}
	b.mu.Lock()
	switch {
	case h.over:
		b.mu.Unlock()
		return http.ErrBodyReadAfterClose
	case h.slow:
		b.mu.Unlock()
		return h.tooSlow()
	case want > b.most:
		b.mu.Unlock()
		return connect.Errorf(connect.CodeResourceExhausted, "a message of the %s over HTTP has more than %d bytes", b.what, b.most/bodyFactor)
	case want <= h.inSmall+h.inLarge:
		b.mu.Unlock()
		return nil
	}
	h.want, h.grows = want, grows
	if b.trySmall(h) || b.queue.Len() == 0 && b.tryLarge(h) {
		b.mu.Unlock()
		return nil
	}
	if b.parked > 0 && b.waiting+size > b.parked {
		held, waiting := b.inLarge+b.inSmall, b.waiting
		b.mu.Unlock()
		return connect.Errorf(connect.CodeResourceExhausted, "the host holds %d bytes of %s over HTTP, of which it takes %d, and %d bytes more wait; "+
			"there is no room for %d: read responses faster, or call less at once", held, b.what, b.limit(), waiting, size)
	}
	b.enqueue(h)
	b.serve()
	granted := h.granted
	b.mu.Unlock()
	timer := time.NewTimer(bodyWait)
	defer timer.Stop()
	var err error
	select {
	case <-granted:
	case <-h.ctx.Done():
		err = causeOf(h.ctx)
	case <-timer.C:
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if h.over {
		return http.ErrBodyReadAfterClose
	}
	if h.place == nil {
		return nil // granted, if only just now
	}
	before := b.withdraw(h)
	if err == nil {
		err = connect.Errorf(connect.CodeResourceExhausted, "the host holds %d bytes of %s over HTTP, of which it takes %d; one of %d bytes found no room within %v, "+
			"behind %d others: send fewer or smaller messages at once", b.inLarge+b.inSmall, b.what, b.limit(), size, bodyWait, before)
	}
	b.serve() // it may have been in the way of others
	return err
}

// tooSlow is why the call of a message that was interrupted fails.
func (h *heldBody) tooSlow() error {
	return connect.Errorf(connect.CodeResourceExhausted, "a message of the %s over HTTP was too slow while others waited for its room: "+
		"it may take %v, and a second for each %d bytes", h.of.what, bodyPatience, bodyRate/bodyFactor)
}

// release gives back all that was reserved.
func (h *heldBody) release() {
	if h.of == nil {
		return
	}
	h.of.mu.Lock()
	defer h.of.mu.Unlock()
	h.of.free(h)
}

// end is release for a call that is over. When it returns, interrupt is not running and will not be
// called.
func (h *heldBody) end() {
	if h.of == nil {
		return
	}
	h.of.mu.Lock()
	h.over = true
	h.of.withdraw(h)
	h.of.free(h)
	h.of.mu.Unlock()
	h.interrupting.Lock()
	defer h.interrupting.Unlock()
	h.interrupt = nil
}

// complete says that the message waits for nothing of the other side any more: it can't be slow.
func (h *heldBody) complete() {
	h.of.mu.Lock()
	defer h.of.mu.Unlock()
	h.whole = true
}

// isSlow says whether the message was interrupted.
func (h *heldBody) isSlow() bool {
	h.of.mu.Lock()
	defer h.of.mu.Unlock()
	return h.slow
}

// trySmall gives a message room among the small ones. Callers hold the lock, as of all that follow.
func (b *bodies) trySmall(h *heldBody) bool {
	free := b.small - b.inSmall + h.inSmall - h.want
	if h.inLarge > 0 || h.want > b.smallMost || h.want > 2*free {
		return false
	}
	b.hold(h, h.want, 0)
	return true
}

// tryLarge gives a message room among the large ones.
func (b *bodies) tryLarge(h *heldBody) bool {
	if b.inLarge-h.inLarge+h.want > b.large {
		return false
	}
	if h.grows && b.growing-h.inLarge+h.want-max(h.want, b.largestGrowing(h)) > b.large-b.most {
		return false
	}
	b.hold(h, 0, h.want)
	return true
}

// largestGrowing is what the largest message of unknown size holds, other than h.
func (b *bodies) largestGrowing(h *heldBody) (largest int) {
	for other := b.holders.next; other != &b.holders; other = other.next {
		if other != h && other.grows {
			largest = max(largest, other.inLarge)
		}
	}
	return largest
}

// hold makes what a message holds that.
func (b *bodies) hold(h *heldBody, small, large int) {
	now := time.Now()
	if h.next == nil {
		h.since, h.whole = now, false
		h.next, h.previous = &b.holders, b.holders.previous
		h.next.previous, h.previous.next = h, h
	} else if h.place != nil {
		h.since = h.since.Add(now.Sub(h.waits))
	}
	b.count(h, small, large)
}

func (b *bodies) count(h *heldBody, small, large int) {
	b.inSmall += small - h.inSmall
	b.inLarge += large - h.inLarge
	if h.grows {
		b.growing += large - h.inLarge
	}
	h.inSmall, h.inLarge = small, large
}

// free takes all from a message, and serves those that wait.
func (b *bodies) free(h *heldBody) {
	if h.next == nil {
		return
	}
	h.next.previous, h.previous.next = h.previous, h.next
	h.next, h.previous = nil, nil
	b.count(h, 0, 0)
	h.grows = false
	b.serve()
}

// enqueue lets a message wait.
func (b *bodies) enqueue(h *heldBody) {
	h.waits, h.granted = time.Now(), make(chan struct{})
	h.place = b.queue.PushBack(h)
	b.waiting += h.want / bodyFactor
	if b.sweeper == nil {
		b.sweeper = time.AfterFunc(bodySweep, b.sweep)
	}
}

// withdraw lets a message wait no longer. It returns how many were before it.
func (b *bodies) withdraw(h *heldBody) (before int) {
	if h.place == nil {
		return 0
	}
	for e := h.place.Prev(); e != nil; e = e.Prev() {
		before++
	}
	b.queue.Remove(h.place)
	h.place = nil
	b.waiting -= h.want / bodyFactor
	close(h.granted)
	return before
}

// serve gives room to those that wait.
func (b *bodies) serve() {
	for e := b.queue.Front(); e != nil; {
		h, _ := e.Value.(*heldBody)
		if e = e.Next(); b.trySmall(h) {
			b.withdraw(h)
		}
	}
	for b.queue.Len() > 0 {
		first, _ := b.queue.Front().Value.(*heldBody)
		for e := b.queue.Front(); e != nil; e = e.Next() {
			if h, _ := e.Value.(*heldBody); h.inLarge > first.inLarge {
				first = h
			}
		}
		if !b.tryLarge(first) {
			return
		}
		b.withdraw(first)
	}
}

// sweep interrupts messages that are slow while others wait for their room.
func (b *bodies) sweep() {
	b.mu.Lock()
	var slow []*heldBody
	if b.queue.Len() == 0 {
		b.sweeper = nil
	} else {
		now, small := time.Now(), false
		for e := b.queue.Front(); e != nil && !small; e = e.Next() {
			h, _ := e.Value.(*heldBody)
			small = h.want <= b.smallMost
		}
		for h := b.holders.next; h != &b.holders; h = h.next {
			held := h.inLarge + h.inSmall
			isInTheWay := h.inLarge > 0 || small
			if isInTheWay && h.place == nil && !h.whole && !h.slow && now.Sub(h.since) > bodyPatience+time.Duration(held)*time.Second/bodyRate {
				h.slow = true
				slow = append(slow, h)
			}
		}
		b.sweeper.Reset(bodySweep)
	}
	b.mu.Unlock()
	for _, h := range slow {
		h.interruptNow()
	}
}

// interruptNow makes the call fail that reads or writes the message, unless it is over.
func (h *heldBody) interruptNow() {
	h.interrupting.Lock()
	defer h.interrupting.Unlock()
	if h.interrupt != nil {
		h.interrupt()
	}
}
