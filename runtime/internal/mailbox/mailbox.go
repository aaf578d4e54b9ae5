// Package mailbox schedules the turns of a node.
//
// A mailbox has a number of turns, one by default. A method that takes turns runs while it holds
// one. Work that finds no free turn is queued and run in FIFO order by a goroutine that the mailbox
// starts on demand and that exits when the queue is empty, so an idle mailbox costs no goroutine. A
// caller that finds the queue empty and a turn free may run the method on its own goroutine instead
// ([Mailbox.TryTurn]); a goroutine of the mailbox then runs whatever is queued meanwhile.
//
// Work may suspend its turn ([Turn.Suspend]), or give it back and continue without it
// ([Turn.GiveBack]), or return while it still counts as running ([Turn.Outlive]).
//
// Concurrent methods take no turn; they are only counted and limited ([Mailbox.Enter]).
//
// Start reading at [Mailbox]. The build tag `invariants` enables a check of its invariants after
// every change.
package mailbox

import (
	"context"
	"sync"

	"connectrpc.com/connect/v2"
)

// Limits limit a mailbox. All must be positive.
type Limits struct {
	// Turns is the number of pieces of work that may hold a turn at once.
	Turns int
	// Pending is the maximum number of queued entries, together with the work that has given its
	// turn back and not ended.
	Pending int
	// Bytes is the maximum total size of these.
	Bytes int64
	// Concurrent is the maximum number of concurrent methods, which run without a turn.
	Concurrent int
}

// Mailbox schedules turns. Its methods are safe for concurrent use.
type Mailbox struct {
	owner  func() string
	limits Limits
	// idle is closed when over is set.
	idle chan struct{}

	mu sync.Mutex // guards the fields below
	// open is set once turns are given out. Each is then either free or held.
	open          bool
	free, holding int
	// starting is the number of held turns whose goroutines have not dequeued their work yet.
	starting int
	// suspended is the number of suspended turns ([Turn.Suspend]). resuming holds those of them
	// that are to be resumed. They take precedence over the queue.
	suspended int
	resuming  list
	queue     list
	bytes     int64
	// turnless is the number of running pieces of work that have given their turn back, or returned
	// and outlived it ([Turn.GiveBack], [Turn.Outlive]), and turnlessBytes their total size.
	turnless      int
	turnlessBytes int64
	// concurrent is the number of concurrent methods that are running.
	concurrent int
	// running holds everything that is running, except turns from Acquire.
	running runList
	// finished counts the work that has ended.
	finished uint64
	// refusal is the error for new work, set once the mailbox is closed. abandoned is set by
	// Abandon: no more turns are given out.
	refusal   error
	abandoned bool
	// over is set once the mailbox is closed and nothing is running or waiting.
	over bool
}

// New returns a mailbox. owner returns the name of the node, for errors. Work is queued and no
// turns are given out before [Mailbox.Open].
func New(owner func() string, limits Limits) *Mailbox {
	return &Mailbox{owner: owner, limits: limits, idle: make(chan struct{})}
}

// Open starts to give out turns.
func (m *Mailbox) Open() {
	m.mu.Lock()
	m.open = true
	m.free = m.limits.Turns
	start := 0
	for m.takeForQueue() {
		start++
	}
	m.step()
	m.mu.Unlock()
	for range start {
		go m.drain()
	}
}

// Turns returns the number of turns.
func (m *Mailbox) Turns() int { return m.limits.Turns }

// Enqueue appends work to the queue. If it succeeds, exactly one of the methods of e.Work is called
// later, on a goroutine of the mailbox, unless [Mailbox.Remove] removes e first. If it fails,
// neither is called. waits reports that the work has to wait for other work.
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

// Remove removes an entry from the queue. It returns false if the entry's work has begun or ended,
// or if the entry was never queued.
func (m *Mailbox) Remove(e *Entry) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if e.list == nil {
		return false
	}
	m.bytes -= e.Bytes
	e.list.remove(e)
	m.endIfIdle()
	m.step()
	return true
}

// TryTurn gives the caller a turn if one is free, the queue is empty and the limits permit it. The
// caller must end it with a deferred [Turn.Release]. of is the value listed by [Mailbox.Running]
// meanwhile. If it is [Sized], its size counts towards Limits.Bytes.
func (m *Mailbox) TryTurn(t *Turn, of any) bool {
	m.mu.Lock()
	ok := m.refusal == nil && (m.turnless == 0 || m.permits(of)) && m.take(t)
	if ok {
		t.of = of
		m.running.push(t)
	}
	m.mu.Unlock()
	return ok
}

// Acquire waits in the queue for a turn. It is for code of the node itself: a closed mailbox still
// gives it turns, until it is over or abandoned, so that running work can finish. The error is
// ctx's, or the reason why the wait was refused.
func (m *Mailbox) Acquire(ctx context.Context, t *Turn, label string) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	m.mu.Lock()
	if m.over || m.abandoned {
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

// giveUp abandons the wait for a turn.
func (m *Mailbox) giveUp(e *Entry) {
	if m.Remove(e) || <-e.granted != nil {
		return
	}
	// The turn was granted concurrently: pass it on.
	m.mu.Lock()
	next := m.next()
	m.step()
	m.mu.Unlock()
	if next != nil {
		go m.drainFrom(next)
	}
}

// Enter admits and counts a concurrent method, or returns an error. It must be followed by
// [Mailbox.Leave] with the same t, which holds no turn. of is the value listed by [Mailbox.Running]
// meanwhile.
func (m *Mailbox) Enter(t *Turn, label string, of any) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.refusal != nil {
		return m.refusal
	}
	if m.concurrent >= m.limits.Concurrent {
		return connect.Errorf(connect.CodeResourceExhausted,
			"%s runs %d concurrent methods and streams, the most it may (max_streams): %s is refused", m.owner(), m.concurrent, label)
	}
	m.concurrent++
	*t = Turn{of: of}
	m.running.push(t)
	return nil
}

// Leave ends what Enter began.
func (m *Mailbox) Leave(t *Turn) {
	m.mu.Lock()
	t.leave()
	m.concurrent--
	m.finished++
	m.endIfIdle()
	m.step()
	m.mu.Unlock()
}

// Stats is a snapshot of a mailbox.
type Stats struct {
	// Waiting is the number of queued calls, Running that of running calls, including concurrent
	// ones.
	Waiting, Running int
	// Finished counts the calls that have ended, whether or not they failed.
	Finished uint64
}

// Stats returns the current counters.
func (m *Mailbox) Stats() Stats {
	m.mu.Lock()
	defer m.mu.Unlock()
	return Stats{Waiting: m.queue.len, Running: m.holding - m.starting + m.suspended + m.turnless + m.concurrent, Finished: m.finished}
}

// Running returns what is running, with and without turns, in the order in which it began: the Work
// of entries, and the values given to TryTurn and Enter.
func (m *Mailbox) Running() []any {
	m.mu.Lock()
	defer m.mu.Unlock()
	var all []any
	for t := m.running.head; t != nil; t = t.next {
		all = append(all, t.of)
	}
	return all
}

// Close refuses new work with err. Queued work still runs.
func (m *Mailbox) Close(err error) {
	m.mu.Lock()
	m.close(err)
	m.step()
	m.mu.Unlock()
}

// Drain waits until a closed mailbox has nothing running or waiting. The error is ctx's.
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

// Abandon closes the mailbox and refuses with err all queued work and all further requests for a
// turn. Running work continues.
func (m *Mailbox) Abandon(err error) {
	m.mu.Lock()
	m.abandoned = true
	var out []*Entry
	for e := m.queue.pop(); e != nil; e = m.queue.pop() {
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

// close refuses new work; the first reason is kept. The caller must hold m.mu.
func (m *Mailbox) close(err error) {
	if m.refusal == nil {
		m.refusal = err
	}
	m.endIfIdle()
}

// take acquires a turn for a running goroutine if one is free and nothing is queued. The caller
// must hold m.mu.
func (m *Mailbox) take(t *Turn) bool {
	if m.free == 0 || m.queue.len > 0 || m.resuming.len > 0 {
		return false
	}
	m.free--
	m.holding++
	*t = Turn{mailbox: m, held: 1}
	m.step()
	return true
}

// push appends e to the queue, or returns why it cannot. start reports that the caller must start a
// goroutine to drain the queue. The caller must hold m.mu.
func (m *Mailbox) push(e *Entry) (start bool, err error) {
	if err := m.full(e); err != nil {
		return false, err
	}
	m.queue.push(e)
	m.bytes += e.Bytes
	start = m.takeForQueue()
	m.step()
	return start, nil
}

// permits reports whether work that finds a turn free may begin, although other work has given its
// turn back. The caller must hold m.mu.
func (m *Mailbox) permits(of any) bool {
	if m.turnless >= m.limits.Pending {
		return false
	}
	sized, ok := of.(Sized)
	return !ok || m.turnlessBytes+sized.Bytes() <= m.limits.Bytes
}

// full returns an error if the queue has no room for e. The limits apply to a backlog, so a single
// message larger than the limit is accepted. The caller must hold m.mu.
func (m *Mailbox) full(e *Entry) error {
	var backlog int
	var bytes int64
	if m.free == 0 { // else the entry does not wait
		backlog, bytes = m.queue.len, m.bytes
	}
	if e.granted == nil { // what asks for a turn inside of the node may be what is waited for
		backlog += m.turnless
		bytes += m.turnlessBytes
	}
	switch {
	case backlog == 0:
		return nil
	case backlog >= m.limits.Pending && e.granted == nil && m.turnless > 0:
		return connect.Errorf(connect.CodeResourceExhausted,
			"the mailbox of %s is full: %d calls wait and %d have given their turn back and are not answered, "+
				"the most it takes (max_pending); the oldest is %s",
			m.owner(), m.queue.len, m.turnless, m.oldest())
	case backlog >= m.limits.Pending:
		return connect.Errorf(connect.CodeResourceExhausted, "the mailbox of %s is full: %d calls wait, the most it takes (max_pending); the oldest is %s",
			m.owner(), m.queue.len, m.oldest())
	case bytes+e.Bytes > m.limits.Bytes:
		return connect.Errorf(connect.CodeResourceExhausted,
			"the mailbox of %s is full: the calls that wait%s take %d bytes, and %s with %d more would pass its bound of %d; the oldest is %s",
			m.owner(), m.orGaveBack(), bytes, e.Label, e.Bytes, m.limits.Bytes, m.oldest())
	}
	return nil
}

func (m *Mailbox) orGaveBack() string {
	if m.turnless == 0 {
		return ""
	}
	return " or have given their turn back"
}

// oldest is the label of the oldest piece of work that counts towards the limits. The caller must
// hold m.mu.
func (m *Mailbox) oldest() string {
	for t := m.running.head; t != nil && m.turnless > 0; t = t.next {
		if of, ok := t.of.(Sized); ok && t.gaveBack {
			return of.Label()
		}
	}
	if m.queue.head == nil {
		return "unknown"
	}
	return m.queue.head.Label
}
