package mailbox

import "sync/atomic"

// Turn is a hold on a mailbox. The zero Turn holds nothing.
type Turn struct {
	mailbox *Mailbox
	// held is read by other goroutines of the method that holds the turn, so it is atomic. (Not an
	// atomic.Bool: turns are copied while nobody holds them.)
	held uint32
	// drained turns belong to a goroutine of the mailbox, which gives them back itself.
	drained bool
	// over says that the work which had the turn has ended. The mailbox's lock guards it, and loan.
	over bool
	loan *loan
	// of is what runs with it; list has it among what runs. The mailbox's lock guards them.
	of         any
	list       *runList
	prev, next *Turn
}

// runList is what runs, in the order in which it began.
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

// leave takes t out of the list that it is in, if it is in one.
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

// loan is a turn that others have for a while.
type loan struct {
	// users are those who lent the turn and don't want it back yet.
	users int
	// entry waits for the turn once they all do.
	entry Entry
	// back is closed when the turn is there again, or its work has ended without.
	back chan struct{}
}

// Release gives the turn of a [Mailbox.TryTurn] or [Mailbox.Acquire] back. A second call does
// nothing.
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

// Held says whether the turn is held just now.
func (t *Turn) Held() bool { return atomic.LoadUint32(&t.held) != 0 }

func (t *Turn) hold(held bool) {
	var v uint32
	if held {
		v = 1
	}
	atomic.StoreUint32(&t.held, v)
}

// Suspend lends the turn to the next in line while its holder waits for something that may need the
// node itself. It ends with [Turn.Resume]. Several goroutines of one method may lend its turn: it
// is back when all of them want it back. A turn that is over can't be lent: then both do nothing.
func (t *Turn) Suspend() {
	m := t.mailbox
	if m == nil {
		return
	}
	m.mu.Lock()
	e := m.lend(t)
	m.step()
	m.mu.Unlock()
	if e != nil {
		go m.drainFrom(e)
	}
}

// Resume waits for the turn again, ahead of all that waits in line. It can't be refused, for the
// work had begun; it waits as long as those who have the turn now.
func (t *Turn) Resume() {
	m := t.mailbox
	if m == nil {
		return
	}
	m.mu.Lock()
	l := t.loan
	if l == nil {
		m.mu.Unlock()
		return
	}
	if l.users--; l.users == 0 {
		m.reclaim(t)
	}
	m.step()
	m.mu.Unlock()
	<-l.back
}

// lend gives the turn to the next, and returns work for a new goroutine to run with it. The lock is
// held.
func (m *Mailbox) lend(t *Turn) *Entry {
	if t.over && guarded {
		return nil
	}
	if l := t.loan; l != nil {
		if l.users++; l.entry.list != nil {
			// It was wanted back already; now it isn't.
			l.entry.list.remove(&l.entry)
		}
		return nil
	}
	t.loan = &loan{users: 1, back: make(chan struct{})}
	t.loan.entry.resumes = t
	t.hold(false)
	m.lent++
	return m.next()
}

// reclaim gets a lent turn back, now or when one is free. The lock is held.
func (m *Mailbox) reclaim(t *Turn) {
	if m.free == 0 {
		m.resuming.push(&t.loan.entry)
		return
	}
	m.free--
	m.holding++
	m.restore(t)
}

// restore makes t held again. The lock is held, and the turn counted as given out.
func (m *Mailbox) restore(t *Turn) {
	m.lent--
	t.hold(true)
	close(t.loan.back)
	t.loan = nil
}

// end ends the work that had the turn, and returns work for the caller to run with it. The lock is
// held.
func (m *Mailbox) end(t *Turn) *Entry {
	if t.over {
		return nil
	}
	t.over = true
	t.leave()
	m.finished++
	if l := t.loan; l != nil {
		// A goroutine that the method left behind has lent the turn: it is not there to be passed
		// on.
		if l.entry.list != nil {
			l.entry.list.remove(&l.entry)
		}
		m.lent--
		close(l.back)
		t.loan = nil
		m.settle()
		return nil
	}
	t.hold(false)
	return m.next()
}
