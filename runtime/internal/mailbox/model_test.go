package mailbox

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync/atomic"
	"testing/synctest"
)

// step is one operation on a mailbox. pick chooses its subject among the possible ones.
type step struct {
	do   action
	pick int
}

type action int

const (
	enqueue action = iota
	try
	acquire
	finish
	goexit
	suspend
	suspendLate
	resume
	giveBack
	giveBackLate
	outlive
	settle
	giveUp
	remove
	enter
	leave
	open
	closed
	abandon
	actions
)

var modelLimits = Limits{Turns: 1, Pending: 3, Bytes: 40, Concurrent: 2}

var errClosed, errCut = errors.New("closed"), errors.New("cut off")

// player is a piece of work, in the mailbox and in the model of it.
type player struct {
	name string
	// What the mailbox reports.
	entry    Entry
	turn     *Turn
	cancel   context.CancelFunc
	end      chan bool // true to end the goroutine
	started  bool
	refused  error
	ended    bool
	resuming atomic.Int32 // goroutines in Resume
	// What the model predicts.
	is    state
	users int
	kind  action
	// outlives is set between Outlive and Finish, and settled after that.
	outlives, settled bool
}

type state int

const (
	waits state = iota
	runs
	suspended
	resumes
	gaveBack
	held
	gone
	rejected
)

func (s state) String() string {
	return [...]string{"waits", "runs", "has suspended its turn", "resumes its turn", "has given its turn back", "has returned and goes on", "is gone", "was refused"}[s]
}

// Run implements Work.
func (p *player) Run(turn *Turn) {
	p.turn, p.started = turn, true
	defer func() { p.ended = true }()
	if <-p.end {
		runtime.Goexit()
	}
}

// Label implements Sized.
func (p *player) Label() string { return p.name }

// Bytes implements Sized.
func (p *player) Bytes() int64 { return p.entry.Bytes }

// Refuse implements Work.
func (p *player) Refuse(err error) { p.refused = err }

// world runs a script on a mailbox and on a simple model of it.
type world struct {
	m       *Mailbox
	limits  Limits
	players []*player
	// The model: the queue, the goroutines that resume a turn, and the rest of the state.
	queue, resuming []*player
	opened, over    bool
	concurrent      int
	marks           []*Turn // of concurrent calls
	finished        uint64
	closedWith      error
	abandoned       bool
	drained         bool
	stopDrain       context.CancelFunc
}

// runScript runs a script, and returns where the mailbox differs from the model. It must be called
// in a bubble of synctest.
func runScript(limits Limits, script []step) (err error) {
	w := &world{limits: limits, m: New(func() string { return "m" }, limits)}
	ctx, cancel := context.WithCancel(context.Background())
	w.stopDrain = cancel
	go func() { w.drained = w.m.Drain(ctx) == nil }()
	defer w.tidy()
	for i, s := range script {
		what := w.play(s)
		synctest.Wait()
		if what == "" {
			continue
		}
		if err := w.compare(); err != nil {
			return fmt.Errorf("step %d, %s: %w", i, what, err)
		}
	}
	return nil
}

// tidy ends everything that is left, so that the bubble can end.
func (w *world) tidy() {
	w.stopDrain()
	w.m.Abandon(errCut)
	synctest.Wait()
	for _, p := range w.players {
		if p.kind == enqueue && p.started && !p.ended {
			p.end <- false
		}
		if p.kind != enqueue && p.turn != nil {
			p.turn.Release()
		}
	}
	synctest.Wait()
}

func (w *world) among(pick int, ok func(*player) bool) *player {
	var list []*player
	for _, p := range w.players {
		if ok(p) {
			list = append(list, p)
		}
	}
	if len(list) == 0 {
		return nil
	}
	return list[pick%len(list)]
}

func (w *world) join(kind action) *player {
	p := &player{name: fmt.Sprintf("p%d", len(w.players)), end: make(chan bool), kind: kind}
	w.players = append(w.players, p)
	return p
}

func (w *world) count(s state) int {
	n := 0
	for _, p := range w.players {
		if p.is == s {
			n++
		}
	}
	return n
}

// running counts what is running, with and without turns.
func (w *world) running() int {
	return w.count(runs) + w.count(suspended) + w.count(resumes) + w.count(gaveBack) + w.count(held) + w.concurrent
}

func (w *world) free() int {
	if !w.opened {
		return 0
	}
	return w.limits.Turns - w.count(runs)
}

func (w *world) bytes() (sum int64) {
	for _, p := range w.queue {
		sum += p.entry.Bytes
	}
	return sum
}

// fits reports whether the limits permit a new call; inner ones are made by running calls.
func (w *world) fits(p *player, inner bool) bool {
	var backlog int
	var bytes int64
	if w.free() == 0 {
		backlog, bytes = len(w.queue), w.bytes()
	}
	for _, other := range w.players {
		if (other.is == gaveBack || other.is == held) && !inner {
			backlog++
			bytes += other.entry.Bytes
		}
	}
	return backlog == 0 || backlog < w.limits.Pending && bytes+p.entry.Bytes <= w.limits.Bytes
}

// admit is the model's treatment of new calls; inner ones are made by running calls.
func (w *world) admit(p *player, inner bool) {
	switch {
	case w.over || w.abandoned || w.closedWith != nil && !inner, !w.fits(p, inner):
		p.is = rejected
	case w.free() > 0:
		p.is = runs
	default:
		p.is = waits
		w.queue = append(w.queue, p)
	}
}

// grantTurns passes free turns on.
func (w *world) grantTurns() {
	for w.free() > 0 {
		switch {
		case len(w.resuming) > 0:
			w.resuming[0].is, w.resuming = runs, w.resuming[1:]
		case len(w.queue) > 0:
			w.queue[0].is, w.queue = runs, w.queue[1:]
		default:
			w.end()
			return
		}
	}
	w.end()
}

func (w *world) end() {
	if w.closedWith != nil && w.running()+len(w.queue) == 0 {
		w.over = true
	}
}

func without(list []*player, p *player) []*player {
	return slices.DeleteFunc(slices.Clone(list), func(q *player) bool { return q == p })
}

// play applies one step to both, and describes it; it returns "" if the step is impossible now.
func (w *world) play(s step) string {
	switch s.do {
	case enqueue:
		p := w.join(enqueue)
		p.entry = Entry{Work: p, Label: p.name, Bytes: int64(s.pick % 50)}
		w.admit(p, false)
		if _, err := w.m.Enqueue(&p.entry); err != nil {
			p.refused = err
		}
		return p.name + " comes"
	case try:
		p := w.join(try)
		p.turn = &Turn{}
		p.entry.Bytes = int64(s.pick % 50)
		p.is = rejected
		if w.free() > 0 && w.closedWith == nil && w.fits(p, false) {
			p.is = runs
		}
		if p.started = w.m.TryTurn(p.turn, p); !p.started {
			p.refused = errors.New("no turn is free")
		}
		return p.name + " tries"
	case acquire:
		w.acquire(w.join(acquire))
		return "a goroutine acquires a turn"
	case finish, goexit:
		return w.finish(s)
	case suspend, suspendLate, resume:
		return w.suspendOrResume(s)
	case giveBack, giveBackLate:
		return w.giveBack(s)
	case outlive, settle:
		return w.outlive(s)
	case giveUp, remove:
		return w.leaveLine(s)
	case enter, leave:
		return w.enterOrLeave(s)
	case open:
		if w.opened {
			return ""
		}
		w.opened = true
		w.grantTurns()
		w.m.Open()
		return "it opens"
	case closed:
		if w.closedWith == nil {
			w.closedWith = errClosed
		}
		w.end()
		w.m.Close(errClosed)
		return "it closes"
	case abandon:
		if w.closedWith == nil {
			w.closedWith = errCut
		}
		w.abandoned = true
		for _, p := range w.queue {
			p.is = rejected
		}
		w.queue = nil
		w.end()
		w.m.Abandon(errCut)
		return "it is abandoned"
	}
	return ""
}

func (w *world) acquire(p *player) {
	ctx, cancel := context.WithCancel(context.Background())
	p.cancel = cancel
	w.admit(p, true)
	go func() {
		t := &Turn{}
		if err := w.m.Acquire(ctx, t, p.name); err != nil {
			p.refused = err
			return
		}
		p.turn, p.started = t, true
	}()
}

func (w *world) finish(s step) string {
	p := w.among(s.pick, func(p *player) bool { return p.is == runs || p.is == suspended || p.is == resumes || p.is == gaveBack })
	if p == nil || !p.started {
		return ""
	}
	w.resuming = without(w.resuming, p)
	if p.is = gone; p.outlives {
		p.is = held
	} else {
		w.finished++
	}
	w.grantTurns()
	if p.kind == enqueue {
		p.end <- s.do == goexit
	} else {
		p.turn.Release()
		p.turn.Release()
		p.ended = true
	}
	return p.name + " ends"
}

func (w *world) suspendOrResume(s step) string {
	p := w.among(s.pick, func(p *player) bool {
		switch s.do {
		case suspendLate:
			return (p.is == gone || p.is == gaveBack || p.is == held) && p.turn != nil
		case resume:
			return p.is == suspended
		default:
			return p.is == runs || p.is == suspended || p.is == resumes
		}
	})
	if p == nil || p.turn == nil {
		return ""
	}
	switch s.do {
	case suspendLate:
		p.turn.Suspend()
		if s.pick%2 == 0 {
			p.turn.Resume()
		}
		return p.name + " suspends a turn that it no longer has"
	case resume:
		if p.users--; p.users == 0 {
			p.is = resumes
			w.resuming = append(w.resuming, p)
			w.grantTurns()
		}
		p.resuming.Add(1)
		go func() {
			p.turn.Resume()
			p.resuming.Add(-1)
		}()
		return p.name + " resumes its turn"
	default:
		p.users++
		w.resuming = without(w.resuming, p)
		p.is = suspended
		w.grantTurns()
		p.turn.Suspend()
		return p.name + " suspends its turn"
	}
}

func (w *world) giveBack(s step) string {
	p := w.among(s.pick, func(p *player) bool {
		if s.do == giveBackLate {
			return p.is == gone || p.is == gaveBack || p.is == held
		}
		return p.is == runs || p.is == suspended || p.is == resumes
	})
	if p == nil || p.turn == nil {
		return ""
	}
	if s.do == giveBackLate {
		p.turn.GiveBack()
		return p.name + " gives back a turn that it no longer has"
	}
	w.resuming = without(w.resuming, p)
	p.is = gaveBack
	w.grantTurns()
	p.turn.GiveBack()
	return p.name + " gives its turn back"
}

func (w *world) outlive(s step) string {
	p := w.among(s.pick, func(p *player) bool {
		if s.do == settle {
			return p.outlives
		}
		return (p.is == runs || p.is == suspended || p.is == resumes || p.is == gaveBack) && p.turn != nil && !p.outlives && !p.settled
	})
	if p == nil {
		return ""
	}
	if s.do == outlive {
		p.outlives = true
		p.turn.Outlive()
		return p.name + " will outlive its turn"
	}
	p.outlives, p.settled = false, true
	if p.is == held {
		p.is = gone
		w.finished++
		w.end()
	}
	p.turn.Finish()
	return p.name + " is finished"
}

func (w *world) leaveLine(s step) string {
	kind := enqueue
	if s.do == giveUp {
		kind = acquire
	}
	p := w.among(s.pick, func(p *player) bool { return p.kind == kind && p.is == waits })
	if p == nil {
		return ""
	}
	w.queue = without(w.queue, p)
	p.is = rejected
	w.end()
	if kind == acquire {
		p.cancel()
		return p.name + " is canceled"
	}
	p.refused = errors.New("it was not removed")
	if w.m.Remove(&p.entry) && !w.m.Remove(&p.entry) {
		p.refused = errors.New("removed")
	}
	return p.name + " is removed"
}

func (w *world) enterOrLeave(s step) string {
	if s.do == leave {
		if w.concurrent == 0 {
			return ""
		}
		w.concurrent--
		w.finished++
		w.end()
		w.m.Leave(w.marks[0])
		w.marks = w.marks[1:]
		return "one leaves"
	}
	fits := w.closedWith == nil && w.concurrent < w.limits.Concurrent
	if fits {
		w.concurrent++
	}
	mark := &Turn{}
	if err := w.m.Enter(mark, "concurrent", nil); (err == nil) != fits {
		w.concurrent += 100 // the comparison covers the rest
	} else if err == nil {
		w.marks = append(w.marks, mark)
	}
	return "one enters"
}

// compare returns the difference between mailbox and model.
func (w *world) compare() error {
	w.m.mu.Lock()
	err := w.m.audit()
	w.m.mu.Unlock()
	if err != nil {
		return err
	}
	for _, p := range w.players {
		begun := p.is == runs || p.is == suspended || p.is == resumes || p.is == gaveBack || p.is == held || p.is == gone
		switch {
		case begun != p.started:
			return fmt.Errorf("%s %s, and has begun: %v", p.name, p.is, p.started)
		case (p.is == gone || p.is == held) != p.ended:
			return fmt.Errorf("%s %s, and has ended: %v", p.name, p.is, p.ended)
		case (p.is == rejected) != (p.refused != nil):
			return fmt.Errorf("%s %s, and got the error %w", p.name, p.is, p.refused)
		case p.turn != nil && p.turn.Held() != (p.is == runs):
			return fmt.Errorf("%s %s, and holds a turn: %v", p.name, p.is, p.turn.Held())
		case (p.is == runs || p.is == gaveBack || p.is == held || p.is == gone) && p.resuming.Load() > 0:
			return fmt.Errorf("%s %s, and waits for its turn still", p.name, p.is)
		}
	}
	want := Stats{Waiting: len(w.queue), Running: w.running(), Finished: w.finished}
	if got := w.m.Stats(); got != want {
		return fmt.Errorf("it counts %+v where there is %+v", got, want)
	}
	if w.drained != w.over {
		return fmt.Errorf("it is over: %v, and its waiter was notified: %v", w.over, w.drained)
	}
	return nil
}
