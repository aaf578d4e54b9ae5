// Package mailbox gives out a node's turns.
//
// A mailbox has a number of turns, one by default; a method that takes turns runs while it holds one. Work that finds no turn
// free waits in line and is run, in order, by a goroutine that the mailbox starts when there is something to run and that ends
// when there is nothing left: an idle mailbox costs no goroutine. A caller who finds nothing waiting and a turn free may run the
// method on its own goroutine instead ([Mailbox.TryTurn]); what piles up meanwhile is not run by that caller but by a goroutine
// of the mailbox.
//
// Methods that run beside the turns are only counted and bounded ([Mailbox.Enter]).
//
// Start reading at [Mailbox].
package mailbox

import (
	"context"
	"fmt"
	"sync"

	"connectrpc.com/connect/v2"
)

// Limits bound a mailbox. All must be positive.
type Limits struct {
	// Turns is how many pieces of work may run at once.
	Turns int
	// Pending is how many may wait.
	Pending int
	// Bytes is how large the waiting ones may be together.
	Bytes int64
	// Beside is how many may run beside the turns.
	Beside int
}

// Mailbox gives out turns. Its methods may be called from any goroutine.
type Mailbox struct {
	owner  func() string
	limits Limits

	mu sync.Mutex // guards all below
	// free is how many turns nobody holds. While anything waits it is zero, or about to be.
	free int
	// resuming come before line: they had their turn and lent it ([Turn.Suspend]).
	resuming list
	line     list
	bytes    int64
	// beside is how many run beside the turns.
	beside int
	// running is how many hold a turn, or had one and lent it.
	running int
	// finished counts what ended.
	finished uint64
	// refusal is what new work is told once the mailbox is closed to it.
	refusal error
	// idle is closed when nothing runs or waits any more; nil while nobody waits for that.
	idle chan struct{}
}

// New makes a mailbox. owner names the node, for errors. It gives out no turns before [Mailbox.Open]: work waits.
func New(owner func() string, limits Limits) *Mailbox {
	return &Mailbox{owner: owner, limits: limits}
}

// Open begins to give out turns.
func (m *Mailbox) Open() {
	m.mu.Lock()
	m.free = m.limits.Turns
	var start int
	for m.line.len+m.resuming.len > start && m.takeIdleTurn() {
		start++
	}
	m.mu.Unlock()
	for range start {
		go m.drain()
	}
}

// Turns is how many turns the mailbox has.
func (m *Mailbox) Turns() int { return m.limits.Turns }

// Enqueue puts work at the end of the line. From then on exactly one of its methods will be called, on a goroutine of the
// mailbox, unless [Mailbox.Remove] takes it out again. An error says why it was refused; then neither is called. waits says that
// the work has to wait for others.
func (m *Mailbox) Enqueue(e *Entry) (waits bool, err error) {
	m.mu.Lock()
	if err := m.admit(e); err != nil {
		m.mu.Unlock()
		return false, err
	}
	m.push(e)
	start := m.takeIdleTurn()
	m.mu.Unlock()
	if start {
		go m.drain()
	}
	return !start, nil
}

// Remove takes work out of the line. It returns false where the work has begun, has ended or was never there.
func (m *Mailbox) Remove(e *Entry) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if e.list == nil {
		return false
	}
	if e.list == &m.line {
		m.bytes -= e.Bytes
	}
	e.list.remove(e)
	m.signalIdle()
	return true
}

// TryTurn gives the caller a turn if one is free and nothing waits for it. The caller must end it with [Turn.Release], in a
// defer, on any way out.
func (m *Mailbox) TryTurn(t *Turn) bool {
	m.mu.Lock()
	ok := m.free > 0 && m.line.len == 0 && m.resuming.len == 0 && m.refusal == nil
	if ok {
		m.free--
		m.running++
	}
	m.mu.Unlock()
	if ok {
		t.mailbox = m
		t.hold(true)
	}
	return ok
}

// Acquire waits in line for a turn. An error is ctx's, or says why the wait was refused.
func (m *Mailbox) Acquire(ctx context.Context, t *Turn, label string) error {
	if m.TryTurn(t) {
		return nil
	}
	e := &Entry{Label: label, granted: make(chan error, 1)}
	if _, err := m.Enqueue(e); err != nil {
		return err
	}
	if err := m.await(ctx, e); err != nil {
		return err
	}
	t.mailbox = m
	t.hold(true)
	return nil
}

// await waits until a turn is handed to e.
func (m *Mailbox) await(ctx context.Context, e *Entry) error {
	select {
	case err := <-e.granted:
		return err
	case <-ctx.Done():
		if m.Remove(e) {
			return context.Cause(ctx)
		}
		// The turn was being handed over just then: take it, and give it back.
		if err := <-e.granted; err != nil {
			return err
		}
		m.release()
		return context.Cause(ctx)
	}
}

// Enter counts work that runs beside the turns, or refuses it. It ends with [Mailbox.Leave].
func (m *Mailbox) Enter(label string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.refusal != nil {
		return m.refusal
	}
	if m.beside >= m.limits.Beside {
		return connect.Errorf(connect.CodeResourceExhausted,
			"%s runs %d concurrent methods and streams, the most it may (max_streams): %s is refused", m.owner(), m.beside, label)
	}
	m.beside++
	return nil
}

// Leave ends what Enter began.
func (m *Mailbox) Leave() {
	m.mu.Lock()
	m.beside--
	m.finished++
	m.signalIdle()
	m.mu.Unlock()
}

// Stats is a mailbox at one moment.
type Stats struct {
	// Waiting and Running count calls in line and calls that run, beside the turns included.
	Waiting, Running int
	// Finished counts all that ended, failed or not.
	Finished uint64
}

// Stats reads the counters.
func (m *Mailbox) Stats() Stats {
	m.mu.Lock()
	defer m.mu.Unlock()
	return Stats{Waiting: m.line.len + m.resuming.len, Running: m.running + m.beside, Finished: m.finished}
}

// Close refuses new work with err from now on. What waits still runs.
func (m *Mailbox) Close(err error) {
	m.mu.Lock()
	if m.refusal == nil {
		m.refusal = err
	}
	m.mu.Unlock()
}

// Drain waits until nothing waits or runs. Close the mailbox first. The error is ctx's.
func (m *Mailbox) Drain(ctx context.Context) error {
	m.mu.Lock()
	if m.idle == nil {
		m.idle = make(chan struct{})
		m.signalIdle()
	}
	idle := m.idle
	m.mu.Unlock()
	select {
	case <-idle:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Abandon refuses with err what waits in line. What runs goes on.
func (m *Mailbox) Abandon(err error) {
	m.mu.Lock()
	var out []*Entry
	for e := m.line.pop(); e != nil; e = m.line.pop() {
		out = append(out, e)
	}
	m.bytes = 0
	m.signalIdle()
	m.mu.Unlock()
	for _, e := range out {
		e.refuse(err)
	}
}

// admit says whether e may wait. The lock is held.
func (m *Mailbox) admit(e *Entry) error {
	if m.refusal != nil {
		return m.refusal
	}
	if m.free > 0 {
		return nil
	}
	oldest := "nothing"
	if m.line.head != nil {
		oldest = m.line.head.Label
	}
	if m.line.len >= m.limits.Pending {
		return connect.Errorf(connect.CodeResourceExhausted, "the mailbox of %s is full: %d calls wait, the most it takes (max_pending); the oldest is %s",
			m.owner(), m.line.len, oldest)
	}
	// One message larger than the bound is taken when it is alone: the bound is on what piles up.
	if m.line.len > 0 && m.bytes+e.Bytes > m.limits.Bytes {
		return connect.Errorf(connect.CodeResourceExhausted, "the mailbox of %s is full: the calls that wait take %d bytes, and %s with %d more would pass its bound of %d; the oldest is %s",
			m.owner(), m.bytes, e.Label, e.Bytes, m.limits.Bytes, oldest)
	}
	return nil
}

func (m *Mailbox) push(e *Entry) {
	m.line.push(e)
	m.bytes += e.Bytes
}

// takeIdleTurn takes a turn for a draining goroutine, if one is free. The lock is held.
func (m *Mailbox) takeIdleTurn() bool {
	if m.free == 0 || m.line.len+m.resuming.len == 0 {
		return false
	}
	m.free--
	m.running++
	return true
}

// next hands the turn that the caller holds to whoever is first: it returns work for the caller to run with that turn, or nil when
// the turn went elsewhere or is free again. The lock is held.
func (m *Mailbox) next() *Entry {
	for {
		e := m.resuming.pop()
		if e == nil {
			if e = m.line.pop(); e == nil {
				m.free++
				m.running--
				m.signalIdle()
				return nil
			}
			m.bytes -= e.Bytes
		}
		if e.granted == nil {
			return e
		}
		if e.resumed {
			// It was counted as running all the while that it had lent its turn.
			m.running--
		}
		e.granted <- nil
		return nil
	}
}

// release gives a turn back, or to the next in line.
func (m *Mailbox) release() {
	m.mu.Lock()
	m.finished++
	e := m.next()
	m.mu.Unlock()
	if e != nil {
		go m.drainFrom(e)
	}
}

func (m *Mailbox) drain() {
	m.mu.Lock()
	e := m.next()
	m.mu.Unlock()
	m.drainFrom(e)
}

// drainFrom runs e and what waits behind it, with the turn that the goroutine holds.
func (m *Mailbox) drainFrom(e *Entry) {
	for e != nil {
		m.run(e)
		m.mu.Lock()
		m.finished++
		e = m.next()
		m.mu.Unlock()
	}
}

// run runs one piece of work. One that ends its goroutine (runtime.Goexit) must not take the turn with it.
func (m *Mailbox) run(e *Entry) {
	done := false
	defer func() {
		if !done {
			m.release()
		}
	}()
	e.turn = Turn{mailbox: m, held: 1, drained: true}
	e.Work.Run(&e.turn)
	done = true
}

// signalIdle tells Drain that nothing is left. The lock is held.
func (m *Mailbox) signalIdle() {
	if m.idle == nil || m.running+m.beside+m.line.len+m.resuming.len > 0 {
		return
	}
	select {
	case <-m.idle:
	default:
		close(m.idle)
	}
}

// String describes the mailbox for a person.
func (m *Mailbox) String() string {
	s := m.Stats()
	return fmt.Sprintf("mailbox of %s: %d running, %d waiting, %d finished", m.owner(), s.Running, s.Waiting, s.Finished)
}
