package ring

import (
	"errors"
	"runtime"
	"sync/atomic"
)

// A seat is what an [InPlace] has for itself alone, so that its writes need no locked instructions
// but those that claim rows: a mark that it uses the mapping, and a count of the rows that it
// wrote, in its participant's entry. A mapping of a ring has six. A head takes one at its second
// write, and gives it back when it is collected as garbage. The heads that have none share the
// number of uses of the ring (Ring.held) and the participant's first count.
//
// A head sets its mark, then loads whether the ring is closed, and only then uses the mapping.
// [Ring.Close] stores that the ring is closed, then loads the marks. When the head is done it
// removes its mark, and loads again whether the ring is closed. A closed ring is unmapped by Close
// or a head, once none of the marks is set. So in each pair of a store and a later load, on both
// sides, the load must not be performed before the store. Go's atomics keep that order.
//
// On amd64 an atomic store is a full barrier, which waits until all earlier stores have reached the
// cache: those of the row too. There the head uses plain stores, and Close has the kernel execute a
// full barrier in each thread of the process (membarrier) between its own store and loads. If the
// head's barrier comes before its load, it finds the ring closed. If it comes after its load, and
// so after its store, Close finds what it stored. Where the kernel has no such barrier, there are
// no seats.
type seat struct {
	// busy is 1 while the head uses the mapping.
	busy  atomic.Uint64
	taken bool // guarded by Ring.mu
	_     [2*cacheLine - 16]byte
}

// seats is how many heads of a process have counts of their own.
const seats = participantSize/wordSize - 2

// sit is called before a write by a head without a seat. It gives it one at the second write, if
// one is free.
func (p *InPlace) sit() {
	if p.unseated++; p.unseated != 2 || !hasSeats() {
		return
	}
	r := p.head.ring
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed.Load() {
		return
	}
	for i := range r.seats {
		s := &r.seats[i]
		if s.taken {
			continue
		}
		s.taken, p.seat = true, s
		p.usual.prepare(p.head, i+1)
		runtime.AddCleanup(p, func(s *seat) {
			r.mu.Lock()
			defer r.mu.Unlock()
			s.taken = false
		}, s)
		return
	}
}

// enter keeps the mappings until leave is called, or returns [ErrClosed].
func (p *InPlace) enter() error {
	if p.seat == nil {
		return p.head.ring.use()
	}
	storeRelease(&p.seat.busy, 1)
	if p.head.ring.closed.Load() { // otherwise Close comes later, and sees the mark
		return errors.Join(ErrClosed, p.leave())
	}
	return nil
}

// leave ends what enter began. It unmaps a closed ring that is not in use otherwise.
func (p *InPlace) leave() error {
	r := p.head.ring
	if p.seat == nil {
		return r.letGo()
	}
	storeRelease(&p.seat.busy, 0)
	if !r.closed.Load() {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.unmapUnused()
}

// wrote counts rows that were made readable.
func (p *InPlace) wrote(rows uint64) {
	if p.seat == nil {
		p.head.ring.participantWritten(p.head.ring.self, 0).Add(rows)
		return
	}
	storeRelease(p.usual.written, p.usual.written.Load()+rows)
}

// unmapUnused removes the mappings of a closed ring, unless they are in use. The caller must hold
// r.mu for writing, and call orderSeats before if it has just closed the ring.
func (r *Ring) unmapUnused() error {
	if r.unmapped || r.held.Load() > 0 {
		return nil
	}
	for i := range r.seats {
		if r.seats[i].busy.Load() != 0 {
			return nil
		}
	}
	r.unmapped = true
	return r.unmapFile()
}

// orderSeats orders the marks of seats, and what their heads load, with the caller's store that
// closed the ring. The caller must hold r.mu.
func (r *Ring) orderSeats() error {
	for i := range r.seats {
		if r.seats[i].taken {
			return barrierForSeats()
		}
	}
	return nil
}
