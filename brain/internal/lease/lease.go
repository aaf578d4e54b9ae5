// Package lease knows which hosts are alive.
//
// A host attaches, and from then on owes a sign of life before each lease runs out. It is declared
// dead when its lease runs out in silence, when its connection has closed and it has not attached
// again within a grace, or when somebody who knows says so. A host that others only spoke of has
// one full lease to attach.
//
// No host is declared dead for the watcher's own absence. A [Watch] notices that it was stopped
// itself, by SIGSTOP, a debugger, a suspended machine or a starved one. Attached hosts then have a
// fresh lease, since their signs of life may be waiting unread; and for a while, which depends on
// how long it was away, a broken connection is no sign of death: hosts gave the connection up while
// nothing answered them, and need time for backoff, dialling and attaching. So do all hosts that
// were known before a start.
//
// Start with [Watch.Attach].
package lease

import (
	"context"
	"fmt"
	"sync"
	"time"

	"connectrpc.com/connect/v2"

	nodev1 "github.com/raylink/raylink/gen/raylink/node/v1"
)

// Options configures a watch over hosts.
type Options struct {
	// Lease is how long a host may be silent.
	Lease time.Duration
	// Grace is how long a host whose connection has closed has to attach again.
	Grace time.Duration
	// Reattach bounds the time that a healthy host takes to find a watcher that has come back: the
	// longest pause between two attempts, dialling, and attaching, on a machine that is busy
	// because all its hosts do the same.
	Reattach time.Duration
	// Died is called for each host that is declared dead, in a goroutine of its own; it may block.
	// Until it returns the host can't attach again, so that what dies with a host is gone before
	// the host is back. The context ends with the watch.
	Died func(ctx context.Context, host *nodev1.HostInfo, cause string)
}

// Watch watches over hosts.
type Watch struct {
	opts   Options
	tick   time.Duration
	ctx    context.Context //nolint:containedctx // the watch's life, which Close ends
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu    sync.Mutex // guards what follows
	hosts map[string]*host
	// recovering is the end of the time in which hosts return from the watcher's last absence:
	// until then none is declared dead for not being attached.
	recovering time.Time
}

// host is one host that is known, attached or not.
type host struct {
	info *nodev1.HostInfo
	// session is the present one; nil while the host is not attached.
	session *Session
	// deadline is when it will be dead, and silence the cause then.
	deadline time.Time
	silence  string
	// buried is set when the host has been declared dead, and closed when all that follows from it
	// is done.
	buried chan struct{}
}

// Session is one stream on which a host holds its lease.
type Session struct {
	watch *Watch
	host  *host
	over  chan struct{}
	cause error // why over was closed; written before
}

// New starts to watch. Close ends it.
func New(opts Options) *Watch {
	ctx, cancel := context.WithCancel(context.Background())
	w := &Watch{
		opts: opts,
		// Often enough that a death is noticed within a quarter of the grace after it is due.
		tick:  max(min(opts.Lease/8, opts.Grace/4), time.Millisecond),
		ctx:   ctx,
		hosts: make(map[string]*host), cancel: cancel,
	}
	w.wg.Go(w.run)
	return w
}

// Close stops to watch: nobody dies any more, and all sessions are over. It waits for every call of
// Died.
func (w *Watch) Close() {
	w.mu.Lock()
	w.cancel()
	for _, h := range w.hosts {
		h.end(connect.NewError(connect.CodeUnavailable, "Brain is closing; attach again when it is back"))
	}
	w.mu.Unlock()
	w.wg.Wait()
}

// Expect gives a host that is not known yet a full lease to attach.
func (w *Watch) Expect(info *nodev1.HostInfo) { w.expect(info, w.opts.Lease) }

// ExpectBack gives a host that was known before a start of the watcher time to attach again: a
// lease, and what a host takes to notice that the watcher is back.
func (w *Watch) ExpectBack(info *nodev1.HostInfo) { w.expect(info, w.opts.Lease+w.opts.Reattach) }

func (w *Watch) expect(info *nodev1.HostInfo, within time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if info == nil || w.hosts[info.GetId()] != nil {
		return
	}
	h := &host{info: info, silence: fmt.Sprintf("it did not attach to Brain within %v", within)}
	h.deadline = w.notBefore(time.Now().Add(within))
	w.hosts[info.GetId()] = h
}

// notBefore is a deadline for a host that is not attached. The caller holds mu.
func (w *Watch) notBefore(deadline time.Time) time.Time {
	if deadline.Before(w.recovering) {
		return w.recovering
	}
	return deadline
}

// Attach begins a session; one that the host still had is over. For a host that is being declared
// dead it waits until that is done.
func (w *Watch) Attach(ctx context.Context, info *nodev1.HostInfo) (*Session, error) {
	for {
		w.mu.Lock()
		if w.ctx.Err() != nil {
			w.mu.Unlock()
			return nil, connect.NewError(connect.CodeUnavailable, "Brain is closing; attach again when it is back")
		}
		h := w.hosts[info.GetId()]
		if h == nil {
			h = &host{}
			w.hosts[info.GetId()] = h
		}
		if buried := h.buried; buried != nil {
			w.mu.Unlock()
			select {
			case <-buried:
				continue
			case <-ctx.Done():
				return nil, fmt.Errorf("wait for the host's burial: %w", context.Cause(ctx))
			}
		}
		h.end(connect.NewError(connect.CodeAborted, "the host has attached again, by another stream"))
		h.info = info
		h.session = &Session{watch: w, host: h, over: make(chan struct{})}
		h.renew(w.opts.Lease)
		session := h.session
		w.mu.Unlock()
		return session, nil
	}
}

// Report declares a host dead at once. It returns when all that follows from it is done. A host
// that is not known dies as well: what is known of it is its id.
func (w *Watch) Report(ctx context.Context, id, cause string) error {
	w.mu.Lock()
	if w.ctx.Err() != nil {
		w.mu.Unlock()
		return connect.NewError(connect.CodeUnavailable, "Brain is closing")
	}
	h := w.hosts[id]
	if h == nil {
		h = &host{info: &nodev1.HostInfo{Id: id}}
		w.hosts[id] = h
	}
	if h.buried == nil {
		w.bury(h, cause)
	}
	buried := h.buried
	w.mu.Unlock()
	select {
	case <-buried:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for the host's burial: %w", context.Cause(ctx))
	}
}

// Renew takes a sign of life.
func (s *Session) Renew() {
	s.watch.mu.Lock()
	defer s.watch.mu.Unlock()
	if s.host.session == s {
		s.host.renew(s.watch.opts.Lease)
	}
}

// Over is closed when the session has ended from this side: the host attached again, was declared
// dead, or the watch closes.
func (s *Session) Over() <-chan struct{} { return s.over }

// Err says why the session is over. Call it after Over is closed.
func (s *Session) Err() error { return s.cause }

// Goodbye ends the session of a host that ends in good order: it is forgotten.
func (s *Session) Goodbye() {
	s.watch.mu.Lock()
	defer s.watch.mu.Unlock()
	if s.host.session == s {
		s.host.session = nil
		delete(s.watch.hosts, s.host.info.GetId())
	}
}

// Broken ends a session whose connection has closed without a goodbye: from now on the grace runs.
func (s *Session) Broken() {
	s.watch.mu.Lock()
	defer s.watch.mu.Unlock()
	if s.host.session != s {
		return
	}
	s.host.session = nil
	s.host.deadline = s.watch.notBefore(time.Now().Add(s.watch.opts.Grace))
	s.host.silence = "connection closed"
}

func (h *host) renew(lease time.Duration) {
	h.deadline = time.Now().Add(lease)
	h.silence = fmt.Sprintf("no sign of life for %v", lease)
}

// end ends the host's session, if it has one, from this side.
func (h *host) end(cause error) {
	if h.session == nil {
		return
	}
	h.session.cause = cause
	close(h.session.over)
	h.session = nil
}

// bury declares a host dead. The caller holds mu.
func (w *Watch) bury(h *host, cause string) {
	h.buried = make(chan struct{})
	h.end(connect.Errorf(connect.CodeAborted, "the host was declared dead: %s", cause))
	w.wg.Go(func() {
		w.opts.Died(w.ctx, h.info, cause)
		w.mu.Lock()
		defer w.mu.Unlock()
		delete(w.hosts, h.info.GetId())
		close(h.buried)
	})
}

func (w *Watch) run() {
	ticker := time.NewTicker(w.tick)
	defer ticker.Stop()
	last := time.Now()
	for {
		select {
		case <-ticker.C:
		case <-w.ctx.Done():
			return
		}
		w.sweep(time.Now(), &last)
	}
}

// sweep declares dead the hosts whose time is up. Time in which the watcher was absent doesn't
// count: attached hosts get a fresh lease, since signs of life may be waiting unread, and for the
// others the clock stood still.
func (w *Watch) sweep(now time.Time, last *time.Time) {
	// While a machine is suspended only the wall clock goes on. That it can be set, too, makes the
	// watcher lenient for a while.
	gap := max(now.Sub(*last), now.Round(0).Sub(last.Round(0)))
	absent := gap > w.tick+absence(w.opts.Grace)
	*last = now
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.ctx.Err() != nil {
		return
	}
	if absent {
		// What a host needs to return grows with the absence. After a short one its connection and
		// its lease stream have held, and what breaks from then on is a death. After a long one it
		// is in the longest of its pauses between attempts.
		if until := now.Add(w.opts.Grace + min(2*gap, w.opts.Lease+w.opts.Reattach)); until.After(w.recovering) {
			w.recovering = until
		}
	}
	for _, h := range w.hosts {
		switch {
		case h.buried != nil:
		case absent && h.session == nil:
			h.deadline = w.notBefore(h.deadline.Add(gap))
		case absent:
			h.deadline = now.Add(w.opts.Lease)
		case now.After(h.deadline):
			w.bury(h, h.silence)
		}
	}
}
