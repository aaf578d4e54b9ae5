package runtime

import (
	"container/list"
	"context"
	"net/http"
	"sync"
	"time"

	"connectrpc.com/connect/v2"
)

// bodies bounds the memory that a host uses for messages over HTTP, of all connections together:
// for requests while they are read, for their decompressed form, or for responses while they are
// written. A mailbox counts requests after that.
//
// What callers may rely on:
//
//   - The reserved memory never exceeds limit, and the size of what waits never exceeds parked, if
//     what waits is already in memory.
//   - A message of known size (Content-Length, the length of an envelope, a response) reserves all
//     of it at once, before a byte of it is read. It never waits again, so it can finish.
//   - A message of unknown size grows by steps. A step is granted only if the largest of the
//     growing messages can still become as large as any message may be while the others keep what
//     they have. So one can always finish, and messages never wait for each other in a cycle.
//   - Waiters are served first in, first out. Steps of messages that hold memory precede messages
//     that hold none, so that what has begun finishes.
//   - Small messages have memory of their own, of which one may take at most twice what it leaves.
//     So large messages, and small ones that never end, do not keep others out. If it is full,
//     small ones wait with the large ones.
//   - A slow message cannot block others for long: while messages wait, one that has held its
//     memory for longer than bodyPatience plus its size at bodyRate is interrupted. Its call fails.
//   - Nothing waits longer than bodyWait, or than its call: it is then refused with
//     ResourceExhausted.
type bodies struct {
	what string
	// large and small are the limits of the two kinds, most and smallMost those of one message.
	large, small, most, smallMost int
	// parked bounds the size of what waits, in bytes; 0 if what waits is not in memory yet.
	parked int

	mu sync.Mutex // guards the fields below, and those of heldBody
	// inLarge and inSmall are what is reserved. growing is the part of inLarge that messages of
	// unknown size hold.
	inLarge, inSmall, growing int
	// holders is the ring of all messages that hold memory.
	holders heldBody
	// queue has the waiters, of type *heldBody; waiting is their total size.
	queue   list.List
	waiting int
	// sweeper interrupts slow messages while the queue is not empty.
	sweeper *time.Timer
}

const (
	// bodyFactor is the memory that a message takes while it is read or written, as a multiple of
	// its size: buffers grow by doubling.
	bodyFactor = 2
	// bodyWait bounds how long a message waits for memory.
	bodyWait = 30 * time.Second
	// bodyPatience is how long a message of any size may hold memory while others wait, and
	// bodyRate the rate that adds to that for larger ones, in bytes per second.
	bodyPatience = 5 * time.Second
	bodyRate     = 1 << 20
	// bodySweep is the interval between checks for slow messages, while others wait.
	bodySweep = time.Second
	// bodyRoom is for what surrounds a message, such as an envelope.
	bodyRoom = 64 << 10
	// bodyFloor is the minimum of the memory for messages: where the largest are small, many arrive
	// at once.
	bodyFloor = 4 << 20
	// smallBody is the largest size of a small message, in bytes.
	smallBody = 64 << 10
	// smallPart is the fraction of all memory that is reserved for small messages: one part in
	// smallPart.
	smallPart = 8
)

// newBodies makes a limit of twice the memory of one of the largest messages.
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

// heldBody is the memory held by one call, which has one message at a time.
type heldBody struct {
	of  *bodies
	ctx context.Context //nolint:containedctx // as long as its call
	// interrupt makes the call that reads or writes the message fail; nil if that is impossible. It
	// is not called after end.
	interrupt func()

	// The fields below are guarded by the lock of bodies.

	inLarge, inSmall int
	// grows is set if the message's size is unknown.
	grows bool
	// since is when it first got memory, moved by the time that it has waited since.
	since time.Time
	// whole is set when it no longer waits for anything from the other side.
	whole bool
	// slow is set when it was interrupted, over when its call has ended.
	slow, over bool
	// place is its position in the queue while it waits for want bytes; granted is closed when it
	// has them.
	place          *list.Element
	want           int
	granted        chan struct{}
	waits          time.Time
	next, previous *heldBody

	// interrupting is held while interrupt runs, and by end.
	interrupting sync.Mutex
}

// reserve sets the memory of a message to that of one of size bytes, and may block. grows is set if
// the message may need more later. It must not be called concurrently.
func (h *heldBody) reserve(size int, grows bool) error {
	b, want := h.of, size*bodyFactor
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
		return nil // granted in the meantime
	}
	before := b.withdraw(h)
	if err == nil {
		err = connect.Errorf(connect.CodeResourceExhausted, "the host holds %d bytes of %s over HTTP, of which it takes %d; one of %d bytes found no room within %v, "+
			"behind %d others: send fewer or smaller messages at once", b.inLarge+b.inSmall, b.what, b.limit(), size, bodyWait, before)
	}
	b.serve() // it may have blocked others in the queue
	return err
}

// tooSlow is the error of a call whose message was interrupted.
func (h *heldBody) tooSlow() error {
	return connect.Errorf(connect.CodeResourceExhausted, "a message of the %s over HTTP was too slow while others waited for its room: "+
		"it may take %v, and a second for each %d bytes", h.of.what, bodyPatience, bodyRate/bodyFactor)
}

// release returns everything that was reserved.
func (h *heldBody) release() {
	if h.of == nil {
		return
	}
	h.of.mu.Lock()
	defer h.of.mu.Unlock()
	h.of.free(h)
}

// end is release for a call that has ended. When it returns, interrupt is not running and will not
// be called.
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

// complete records that the message no longer waits for anything from the other side: it cannot be
// slow.
func (h *heldBody) complete() {
	h.of.mu.Lock()
	defer h.of.mu.Unlock()
	h.whole = true
}

// isSlow reports whether the message was interrupted.
func (h *heldBody) isSlow() bool {
	h.of.mu.Lock()
	defer h.of.mu.Unlock()
	return h.slow
}

// trySmall grants a message memory reserved for small ones. Its caller holds the lock, as for all
// methods below.
func (b *bodies) trySmall(h *heldBody) bool {
	free := b.small - b.inSmall + h.inSmall - h.want
	if h.inLarge > 0 || h.want > b.smallMost || h.want > 2*free {
		return false
	}
	b.hold(h, h.want, 0)
	return true
}

// tryLarge grants a message memory for large ones.
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

// largestGrowing is the memory of the largest message of unknown size other than h.
func (b *bodies) largestGrowing(h *heldBody) (largest int) {
	for other := b.holders.next; other != &b.holders; other = other.next {
		if other != h && other.grows {
			largest = max(largest, other.inLarge)
		}
	}
	return largest
}

// hold sets the memory of a message.
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

// free releases all memory of a message, and serves the waiters.
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

// enqueue adds a message to the waiters.
func (b *bodies) enqueue(h *heldBody) {
	h.waits, h.granted = time.Now(), make(chan struct{})
	h.place = b.queue.PushBack(h)
	b.waiting += h.want / bodyFactor
	if b.sweeper == nil {
		b.sweeper = time.AfterFunc(bodySweep, b.sweep)
	}
}

// withdraw removes a message from the waiters, and returns how many were before it.
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

// serve grants memory to waiters.
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

// sweep interrupts slow messages while others wait for their memory.
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

// interruptNow makes the call that reads or writes the message fail, unless it has ended.
func (h *heldBody) interruptNow() {
	h.interrupting.Lock()
	defer h.interrupting.Unlock()
	if h.interrupt != nil {
		h.interrupt()
	}
}
