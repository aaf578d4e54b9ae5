package mailbox

import (
	"context"
	"sync/atomic"
)

// Turn is a hold on a mailbox. The zero Turn holds nothing.
type Turn struct {
	mailbox *Mailbox
	// held is read by other goroutines of the method that holds the turn, so it is atomic. (Not an atomic.Bool: turns are copied while nobody
	// holds them.)
	held uint32
	// drained turns belong to a goroutine of the mailbox, which gives them back itself.
	drained bool
}

// Release gives the turn of a [Mailbox.TryTurn] or [Mailbox.Acquire] back. A second call does nothing.
func (t *Turn) Release() {
	if t.drained || !t.Held() {
		return
	}
	t.hold(false)
	t.mailbox.release()
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

// Suspend lends the turn to the next in line while its holder waits for something that may need the node itself. Only the
// holder may call it; nothing happens if the turn is not held. It ends with [Turn.Resume].
func (t *Turn) Suspend() {
	if !t.Held() {
		return
	}
	t.hold(false)
	m := t.mailbox
	m.mu.Lock()
	// next counts the turn's end; the holder itself goes on being counted as running.
	m.running++
	e := m.next()
	m.mu.Unlock()
	if e != nil {
		go m.drainFrom(e)
	}
}

// Resume waits for the turn again, ahead of all that waits in line. It can't be refused: the work had begun.
func (t *Turn) Resume() {
	if t.mailbox == nil || t.Held() {
		return
	}
	m := t.mailbox
	m.mu.Lock()
	if m.free > 0 {
		m.free--
		m.mu.Unlock()
		t.hold(true)
		return
	}
	e := &Entry{Label: "a method that waited", granted: make(chan error, 1), resumed: true}
	m.resuming.push(e)
	m.mu.Unlock()
	// The turn comes when whoever holds one is done with it, as any turn does: no context, for the work can't go on without.
	if err := m.await(context.Background(), e); err == nil {
		t.hold(true)
	}
}
