package mailbox

import "sync/atomic"

// Turn is a turn of a mailbox. The zero Turn holds none.
type Turn struct {
	mailbox *Mailbox
	// held is atomic since other goroutines of the method that holds the turn read it. (It is not
	// an atomic.Bool because Turns are copied while they are not held.)
	held uint32
	// drained is set if the turn belongs to a goroutine of the mailbox, which releases it itself.
	drained bool
	// over is set once the work that had the turn has ended, and gaveBack if it gave the turn back
	// before that. Both, outlives and suspension are guarded by Mailbox.mu; outlives is set without
	// it by the goroutine that runs the work.
	over, gaveBack bool
	outlives       outliving
	suspension     *suspension
	// of is the value listed by Running, and list the list that contains the Turn. Both are guarded
	// by Mailbox.mu.
	of         any
	list       *runList
	prev, next *Turn
}

// outliving is whether work goes on after it has returned ([Turn.Outlive]).
type outliving uint8

const (
	// willOutlive is set until the work has returned, and hasReturned afterwards.
	willOutlive outliving = iota + 1
	hasReturned
)

// runList is a list of running work, in the order in which it began.
type runList struct{ head, tail *Turn }

func (l *runList) push(t *Turn) {
	t.list, t.prev, t.next = l, l.tail, nil
	if l.tail == nil {
		l.head = t
	} else {
		l.tail.next = t
	}
	l.tail = t
}

// leave removes t from its list, if it is in one.
func (t *Turn) leave() {
	l := t.list
	if l == nil {
		return
	}
	if t.prev == nil {
		l.head = t.next
	} else {
		t.prev.next = t.next
	}
	if t.next == nil {
		l.tail = t.prev
	} else {
		t.next.prev = t.prev
	}
	t.of, t.list, t.prev, t.next = nil, nil, nil, nil
}

// suspension is the state of a suspended turn.
type suspension struct {
	// users is the number of goroutines that have suspended the turn and not resumed it.
	users int
	// entry waits for the turn once users is 0.
	entry Entry
	// resumed is closed when the turn is held again, or when its work has ended without it.
	resumed chan struct{}
}

// Sized is implemented by values listed by [Mailbox.Running] that have a name for errors and a size
// in bytes, as entries of the queue have ([Entry]).
type Sized interface {
	Label() string
	Bytes() int64
}

// bytes is the size of the work that has or had the turn; 0 if it is not known.
func (t *Turn) bytes() int64 {
	if of, ok := t.of.(Sized); ok {
		return of.Bytes()
	}
	return 0
}

// Release releases a turn from [Mailbox.TryTurn] or [Mailbox.Acquire]. Further calls do nothing.
func (t *Turn) Release() {
	m := t.mailbox
	if m == nil || t.drained {
		return
	}
	m.mu.Lock()
	e := m.end(t)
	m.step()
	m.mu.Unlock()
	if e != nil {
		go m.drainFrom(e)
	}
}

// Held reports whether the turn is currently held.
func (t *Turn) Held() bool { return atomic.LoadUint32(&t.held) != 0 }

func (t *Turn) hold(held bool) {
	var v uint32
	if held {
		v = 1
	}
	atomic.StoreUint32(&t.held, v)
}

// Suspend passes the turn to the next in the queue while its holder waits for something that may
// need the node itself. It must be followed by [Turn.Resume]. Several goroutines of one method may
// suspend its turn; it is resumed when all of them have called Resume. On a turn whose work has
// ended, or that was given back, both do nothing.
func (t *Turn) Suspend() {
	m := t.mailbox
	if m == nil {
		return
	}
	m.mu.Lock()
	e := m.suspend(t)
	m.step()
	m.mu.Unlock()
	if e != nil {
		go m.drainFrom(e)
	}
}

// Resume blocks until the turn is held again. It takes precedence over queued work. It cannot be
// refused, since the work has begun; it waits for as long as the current holders keep their turns.
func (t *Turn) Resume() {
	m := t.mailbox
	if m == nil {
		return
	}
	m.mu.Lock()
	l := t.suspension
	if l == nil {
		m.mu.Unlock()
		return
	}
	if l.users--; l.users == 0 {
		m.resume(t)
	}
	m.step()
	m.mu.Unlock()
	<-l.resumed
}

// GiveBack passes the turn to the next in the queue for good, while the work that had it continues
// without one. The work still counts as running, and ends as it would with its turn: by
// [Turn.Release], or by returning from [Work.Run]. If the turn is suspended, it is not held again:
// Resume returns at once. On a turn that was given back, or whose work has ended, GiveBack does
// nothing.
func (t *Turn) GiveBack() {
	m := t.mailbox
	if m == nil {
		return
	}
	m.mu.Lock()
	e := m.giveBack(t)
	m.step()
	m.mu.Unlock()
	if e != nil {
		go m.drainFrom(e)
	}
}

// giveBack gives t back, and returns work for a new goroutine to run with its turn. The caller must
// hold m.mu.
func (m *Mailbox) giveBack(t *Turn) *Entry {
	if t.over || t.gaveBack {
		return nil
	}
	t.gaveBack = true
	m.turnless++
	m.turnlessBytes += t.bytes()
	if t.suspension != nil {
		m.forget(t)
		return nil
	}
	t.hold(false)
	return m.next()
}

// Outlive lets the work go on after it has returned, until [Turn.Finish]. Returning passes the turn
// on as always, and starts no goroutine. From then on the work counts as running without a turn,
// like work that has given its turn back. Outlive must be called by the work, before it returns.
func (t *Turn) Outlive() { t.outlives = willOutlive }

// Finish ends what [Turn.Outlive] began: now, or when the work returns, if it has not yet. It may
// be called on any goroutine after Outlive, and must be called once.
func (t *Turn) Finish() {
	m := t.mailbox
	m.mu.Lock()
	over := t.outlives == hasReturned
	t.outlives = 0
	if over {
		m.end(t) // there is no turn to pass on
	}
	m.step()
	m.mu.Unlock()
}

// forget makes a suspended turn one that is never held again. There is none to pass on. The caller
// must hold m.mu.
func (m *Mailbox) forget(t *Turn) {
	l := t.suspension
	if l.entry.list != nil {
		l.entry.list.remove(&l.entry)
	}
	m.suspended--
	close(l.resumed)
	t.suspension = nil
}

// suspend suspends t, and returns work for a new goroutine to run with its turn. The caller must
// hold m.mu.
func (m *Mailbox) suspend(t *Turn) *Entry {
	if t.over || t.gaveBack {
		return nil
	}
	if l := t.suspension; l != nil {
		if l.users++; l.entry.list != nil {
			// All users had resumed; now one suspends again before the turn is back.
			l.entry.list.remove(&l.entry)
		}
		return nil
	}
	t.suspension = &suspension{users: 1, resumed: make(chan struct{})}
	t.suspension.entry.resumes = t
	t.hold(false)
	m.suspended++
	return m.next()
}

// resume makes t held again, now or when one is free. The caller must hold m.mu.
func (m *Mailbox) resume(t *Turn) {
	if m.free == 0 {
		m.resuming.push(&t.suspension.entry)
		return
	}
	m.free--
	m.holding++
	m.restore(t)
}

// restore marks t as held again. The caller must hold m.mu and have counted the turn in holding.
func (m *Mailbox) restore(t *Turn) {
	m.suspended--
	t.hold(true)
	close(t.suspension.resumed)
	t.suspension = nil
}

// end ends the work that had the turn, and returns work for the caller to run with it. The caller
// must hold m.mu.
func (m *Mailbox) end(t *Turn) *Entry {
	switch {
	case t.over || t.outlives == hasReturned:
		return nil
	case t.outlives == willOutlive:
		t.outlives = hasReturned
		return m.giveBack(t)
	}
	t.over = true
	if t.gaveBack {
		m.turnless--
		m.turnlessBytes -= t.bytes()
	}
	t.leave()
	m.finished++
	switch {
	case t.gaveBack:
		m.endIfIdle()
		return nil
	case t.suspension != nil: // by a goroutine that outlives the method
		m.forget(t)
		m.endIfIdle()
		return nil
	}
	t.hold(false)
	return m.next()
}
