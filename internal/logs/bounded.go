package logs

import (
	"context"
	"fmt"
	"log/slog"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/raylink/raylink/internal/usercode"
)

const (
	// stallLimit is how long a record waits for its handler.
	stallLimit = 200 * time.Millisecond
	// maxPending is how many records wait for a handler that has stalled.
	maxPending = 256
)

// Bounded is a handler that bounds how long a record waits for another handler, which may be the
// user's code or write to a pipe that is not read. After stallLimit the record is left to a
// goroutine of its own. Until that returns, up to maxPending further records wait, and the rest is
// counted. A handler that panics or ends its goroutine loses its record.
type Bounded struct {
	inner slog.Handler
	state *stallState // of all handlers derived from one
	// disabled is the highest level at which inner was not enabled when it was asked last.
	disabled atomic.Int64
}

func newBounded(inner slog.Handler, state *stallState) *Bounded {
	b := &Bounded{inner: inner, state: state}
	b.disabled.Store(math.MinInt64)
	return b
}

type stallState struct {
	// handling counts the records that the handler has not returned for.
	handling atomic.Int64

	mu sync.Mutex // guards what follows
	// overdue counts those of them that are not waited for any more.
	overdue int
	since   time.Time // when the first of them began
	pending []pendingRecord
	lost    int
	settled chan struct{} // closed when overdue is 0 again
	stalled func(since time.Time)
}

type pendingRecord struct {
	handler slog.Handler
	ctx     context.Context //nolint:containedctx // the record's
	record  slog.Record
}

// Bound is handler with a bound, see [Bounded].
func Bound(handler slog.Handler) *Bounded {
	if b, ok := handler.(*Bounded); ok {
		return b
	}
	return newBounded(handler, &stallState{})
}

// OnStall has fn called, on a goroutine of its own, each time that the handler stalls.
func (b *Bounded) OnStall(fn func(since time.Time)) {
	b.state.mu.Lock()
	defer b.state.mu.Unlock()
	b.state.stalled = fn
}

// Flush waits for records that the handler has not returned for, up to stallLimit. Its error says
// what is missing.
func (b *Bounded) Flush() error {
	s := b.state
	s.mu.Lock()
	settled := s.settled
	s.mu.Unlock()
	if settled == nil {
		return nil
	}
	timer := time.NewTimer(stallLimit)
	defer timer.Stop()
	select {
	case <-settled:
		return nil
	case <-timer.C:
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.overdue == 0 {
		return nil
	}
	return fmt.Errorf("the log's handler has not returned for %v: %d records wait for it and %d are lost; "+
		"the goroutine that it blocks is left behind", time.Since(s.since).Round(time.Millisecond), len(s.pending), s.lost)
}

// Enabled implements slog.Handler. It does not call the handler while that handles a record, since
// the handler may hold a lock that its Enabled needs too.
func (b *Bounded) Enabled(ctx context.Context, level slog.Level) (enabled bool) {
	if b.state.handling.Load() > 0 {
		return int64(level) > b.disabled.Load() // and it is asked before it handles the record
	}
	defer func() {
		if recover() != nil {
			enabled = true
		}
	}()
	if enabled = b.inner.Enabled(ctx, level); !enabled && int64(level) > b.disabled.Load() {
		b.disabled.Store(int64(level))
	} else if enabled && int64(level) <= b.disabled.Load() {
		b.disabled.Store(int64(level) - 1)
	}
	return enabled
}

// WithAttrs implements slog.Handler.
func (b *Bounded) WithAttrs(attrs []slog.Attr) slog.Handler {
	return newBounded(b.inner.WithAttrs(attrs), b.state)
}

// WithGroup implements slog.Handler.
func (b *Bounded) WithGroup(name string) slog.Handler {
	return newBounded(b.inner.WithGroup(name), b.state)
}

// Handle implements slog.Handler.
func (b *Bounded) Handle(ctx context.Context, record slog.Record) error {
	s := b.state
	record = record.Clone()
	s.mu.Lock()
	if s.overdue > 0 {
		s.enqueue(pendingRecord{b.inner, context.WithoutCancel(ctx), record})
		s.mu.Unlock()
		return nil
	}
	s.handling.Add(1)
	s.mu.Unlock()
	h := &handling{state: s, began: time.Now(), done: make(chan struct{})}
	go h.run(pendingRecord{b.inner, ctx, record})
	timer := time.NewTimer(stallLimit)
	defer timer.Stop()
	select {
	case <-h.done:
		return h.err
	case <-timer.C:
		h.leave()
		return nil
	}
}

// enqueue keeps a record until the handler returns. s.mu is held.
func (s *stallState) enqueue(p pendingRecord) {
	if len(s.pending) < maxPending {
		s.pending = append(s.pending, p)
	} else {
		s.lost++
	}
}

// handling is one record on its way through the handler, on a goroutine of its own.
type handling struct {
	state   *stallState
	began   time.Time
	done    chan struct{}
	err     error // set before done is closed
	overdue bool  // guarded by state.mu
	over    bool  // guarded by state.mu
}

// leave stops waiting for the record.
func (h *handling) leave() {
	s := h.state
	s.mu.Lock()
	defer s.mu.Unlock()
	if h.over {
		return
	}
	h.overdue = true
	if s.overdue++; s.overdue > 1 {
		return
	}
	s.since, s.settled = h.began, make(chan struct{})
	if s.stalled != nil {
		go s.stalled(h.began)
	}
}

// run handles a record, and then those that have come while it was overdue, in order.
func (h *handling) run(p pendingRecord) {
	returned := false
	defer func() {
		if returned {
			return
		}
		// The handler has ended its goroutine, which is this one.
		if next, more := h.end(p.handler); more {
			go h.run(next)
		}
	}()
	for more := true; more; {
		h.handle(p)
		p, more = h.end(p.handler)
	}
	returned = true
}

// end returns what is handled next; where nothing is, the record is over.
func (h *handling) end(handler slog.Handler) (next pendingRecord, more bool) {
	s := h.state
	s.mu.Lock()
	defer s.mu.Unlock()
	if next, more = h.next(handler); more {
		return next, more
	}
	h.over = true
	s.handling.Add(-1)
	if h.overdue {
		if s.overdue--; s.overdue == 0 {
			close(s.settled)
			s.settled = nil
		}
	}
	close(h.done)
	return next, false
}

// next returns the record to handle next, once the handler has returned for an overdue one. s.mu
// is held.
func (h *handling) next(handler slog.Handler) (p pendingRecord, more bool) {
	s := h.state
	switch {
	case !h.overdue:
		return p, false
	case len(s.pending) > 0:
		p, s.pending = s.pending[0], s.pending[1:]
		return p, true
	case s.lost > 0:
		r := slog.NewRecord(time.Now(), slog.LevelWarn, "log records were lost: the log's handler did not return", 0)
		r.AddAttrs(slog.Int("lost", s.lost), slog.Time("since", s.since))
		s.lost = 0
		return pendingRecord{handler, context.Background(), r}, true
	}
	return p, false
}

// handle passes a record to its handler. It does not return if the handler ends its goroutine.
func (h *handling) handle(p pendingRecord) {
	usercode.Run(func() error {
		if !p.handler.Enabled(p.ctx, p.record.Level) {
			return nil
		}
		return p.handler.Handle(p.ctx, p.record)
	}, func(err error) {
		if f, ok := err.(*usercode.UnreturnedError); ok { //nolint:errorlint // Run's own type
			err = fmt.Errorf("the log's handler %w\n%s", f, f.Stack())
		}
		h.err = err
	})
}
