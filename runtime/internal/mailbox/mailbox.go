// Package mailbox gives out a node's turns.
//
// A mailbox has a number of turns, one by default; a method that takes turns runs while it holds
// one. Work that finds no turn free waits in line and is run, in order, by a goroutine that the
// mailbox starts when there is something to run and that ends when there is nothing left: an idle
// mailbox costs no goroutine. A caller who finds nothing waiting and a turn free may run the method
// on its own goroutine instead ([Mailbox.TryTurn]); what piles up meanwhile is not run by that
// caller but by a goroutine of the mailbox.
//
// Methods that run beside the turns are only counted and bounded ([Mailbox.Enter]).
//
// Start reading at [Mailbox]. The build tag `invariants` makes it check its books at every step.
package mailbox

import (
	"context"
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
	// idle is closed with over.
	idle chan struct{}

	mu sync.Mutex // guards all below
	// open says that turns are given out: each is free or held.
	open          bool
	free, holding int
	// starting of the held turns belong to goroutines that have not looked for their work yet.
	starting int
	// lent counts work that had its turn and lent it ([Turn.Suspend]); resuming are those of it
	// that want it back. They come before line.
	lent     int
	resuming list
	line     list
	bytes    int64
	// beside is how many run beside the turns.
	beside int
	// running has what runs, but for turns of Acquire.
	running runList
	// finished counts what ended.
	finished uint64
	// refusal is what new work is told once the mailbox is closed to it; cut says that nobody gets
	// a turn any more.
	refusal error
	cut     bool
	// over says that the mailbox is closed and nothing runs or waits any more.
	over bool
}

// New makes a mailbox. owner names the node, for errors. It gives out no turns before
// [Mailbox.Open]: work waits.
func New(owner func() string, limits Limits) *Mailbox {
	return &Mailbox{owner: owner, limits: limits, idle: make(chan struct{})}
}

// Open begins to give out turns.
func (m *Mailbox) Open() {
	m.mu.Lock()
	m.open = true
	m.free = m.limits.Turns
	start := 0
	for m.takeForLine() {
		start++
	}
	m.step()
	m.mu.Unlock()
	for range start {
		go m.drain()
	}
}

// Turns is how many turns the mailbox has.
func (m *Mailbox) Turns() int { return m.limits.Turns }

// Enqueue puts work at the end of the line. From then on exactly one of its methods will be called,
// on a goroutine of the mailbox, unless [Mailbox.Remove] takes it out again. An error says why it
// was refused; then neither is called. waits says that the work has to wait for others.
func (m *Mailbox) Enqueue(e *Entry) (waits bool, err error) {
	m.mu.Lock()
	if err := m.refusal; err != nil {
		m.mu.Unlock()
		return false, err
	}
	start, err := m.push(e)
	m.mu.Unlock()
	if start {
		go m.drain()
	}
	return !start, err
}

// Remove takes work out of the line. It returns false where the work has begun, has ended or was
// never there.
func (m *Mailbox) Remove(e *Entry) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if e.list == nil {
		return false
	}
	m.bytes -= e.Bytes
	e.list.remove(e)
	m.settle()
	m.step()
	return true
}

// TryTurn gives the caller a turn if one is free and nothing waits for it. The caller must end it
// with [Turn.Release], in a defer, on any way out. of is what [Mailbox.Running] lists meanwhile.
func (m *Mailbox) TryTurn(t *Turn, of any) bool {
	m.mu.Lock()
	ok := m.refusal == nil && m.take(t)
	if ok {
		t.of = of
		m.running.push(t)
	}
	m.mu.Unlock()
	return ok
}

// Acquire waits in line for a turn. It is for what a node's own code does: a closed mailbox still
// gives it turns, until it is over or cut, so that what runs can come to its end. An error is
// ctx's, or says why the wait was refused.
func (m *Mailbox) Acquire(ctx context.Context, t *Turn, label string) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	m.mu.Lock()
	if m.over || m.cut {
		defer m.mu.Unlock()
		return m.refusal
	}
	if m.take(t) {
		m.mu.Unlock()
		return nil
	}
	e := &Entry{Label: label, granted: make(chan error, 1)}
	start, err := m.push(e)
	m.mu.Unlock()
	if err != nil {
		return err
	}
	if start {
		go m.drain()
	}
	select {
	case err := <-e.granted:
		if err != nil {
			return err
		}
		*t = Turn{mailbox: m, held: 1}
		return nil
	case <-ctx.Done():
		m.giveUp(e)
		return context.Cause(ctx)
	}
}

// giveUp ends the wait for a turn.
func (m *Mailbox) giveUp(e *Entry) {
	if m.Remove(e) || <-e.granted != nil {
		return
	}
	// It was being handed over just then, to nobody now.
	m.mu.Lock()
	next := m.next()
	m.step()
	m.mu.Unlock()
	if next != nil {
		go m.drainFrom(next)
	}
}

// Enter counts work that runs beside the turns, or refuses it. It ends with [Mailbox.Leave] of the
// same t, which holds no turn. of is what [Mailbox.Running] lists meanwhile.
func (m *Mailbox) Enter(t *Turn, label string, of any) error {
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
	*t = Turn{of: of}
	m.running.push(t)
	return nil
}

// Leave ends what Enter began.
func (m *Mailbox) Leave(t *Turn) {
	m.mu.Lock()
	t.leave()
	m.beside--
	m.finished++
	m.settle()
	m.step()
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
	return Stats{Waiting: m.line.len, Running: m.holding - m.starting + m.lent + m.beside, Finished: m.finished}
}

// Running lists what runs with turns and beside them, in the order in which it began: the work of
// entries, and what TryTurn and Enter were given.
func (m *Mailbox) Running() []any {
	m.mu.Lock()
	defer m.mu.Unlock()
	var all []any
	for t := m.running.head; t != nil; t = t.next {
		all = append(all, t.of)
	}
	return all
}

// Close refuses new work with err from now on. What waits still runs.
func (m *Mailbox) Close(err error) {
	m.mu.Lock()
	m.close(err)
	m.step()
	m.mu.Unlock()
}

// Drain waits until a closed mailbox is over: nothing waits or runs. The error is ctx's.
func (m *Mailbox) Drain(ctx context.Context) error {
	select {
	case <-m.idle:
		return nil
	default:
	}
	select {
	case <-m.idle:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Abandon closes the mailbox and refuses with err what waits in line, and whoever wants a turn from
// then on. What runs goes on.
func (m *Mailbox) Abandon(err error) {
	m.mu.Lock()
	m.cut = true
	var out []*Entry
	for e := m.line.pop(); e != nil; e = m.line.pop() {
		out = append(out, e)
	}
	m.bytes = 0
	m.close(err)
	m.step()
	m.mu.Unlock()
	for _, e := range out {
		e.refuse(err)
	}
}

// close refuses what is new; the first reason stays. The lock is held.
func (m *Mailbox) close(err error) {
	if m.refusal == nil {
		m.refusal = err
	}
	m.settle()
}

// take gives out a turn to a goroutine that is there already, if nobody waits for one. The lock is
// held.
func (m *Mailbox) take(t *Turn) bool {
	if m.free == 0 || m.line.len > 0 || m.resuming.len > 0 {
		return false
	}
	m.free--
	m.holding++
	*t = Turn{mailbox: m, held: 1}
	m.step()
	return true
}

// push puts e at the end of the line, or says why not. start says that the caller must start a
// goroutine to drain it. The lock is held.
func (m *Mailbox) push(e *Entry) (start bool, err error) {
	if err := m.full(e); err != nil {
		return false, err
	}
	m.line.push(e)
	m.bytes += e.Bytes
	start = m.takeForLine()
	m.step()
	return start, nil
}

// full says why e may not wait. The lock is held.
func (m *Mailbox) full(e *Entry) error {
	if m.free > 0 || m.line.len == 0 {
		// It does not wait, or it is alone: the bounds are on what piles up, so one message larger
		// than they are is taken.
		return nil
	}
	if m.line.len >= m.limits.Pending {
		return connect.Errorf(connect.CodeResourceExhausted, "the mailbox of %s is full: %d calls wait, the most it takes (max_pending); the oldest is %s",
			m.owner(), m.line.len, m.line.head.Label)
	}
	if m.bytes+e.Bytes > m.limits.Bytes {
		return connect.Errorf(connect.CodeResourceExhausted,
			"the mailbox of %s is full: the calls that wait take %d bytes, and %s with %d more would pass its bound of %d; the oldest is %s",
			m.owner(), m.bytes, e.Label, e.Bytes, m.limits.Bytes, m.line.head.Label)
	}
	return nil
}
