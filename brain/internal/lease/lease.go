// Package lease monitors the liveness of hosts.
//
// A host attaches, and must then renew its lease before it expires. It is declared dead when its
// lease expires, when its connection has closed and it has not attached again within a grace
// period, or when its death is reported. A host that is known only from others' requests has one
// full lease to attach.
//
// No host is declared dead because of the watcher's own absence. A [Watch] detects that it was
// itself suspended: by SIGSTOP, a debugger, a suspended machine or a lack of CPU. Attached hosts
// then get a fresh lease, since their renewals may be waiting unread. And for a while, which
// depends on how long the watcher was absent, a broken connection is no sign of death: hosts have
// closed connections on which nothing responded, and need time for backoff, dialling and attaching.
// The same applies to all hosts that were known before a restart.
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

// Options configures a Watch.
type Options struct {
	// Lease is how long a host may be silent.
	Lease time.Duration
	// Grace is how long a host whose connection has closed may take to attach again.
	Grace time.Duration
	// Reattach bounds the time that a healthy host takes to find a watcher that has come back: the
	// longest pause between two attempts, dialling, and attaching, on a machine that is busy
	// because all of its hosts do the same.
	Reattach time.Duration
	// Died is called, on a goroutine of its own, for each host that is declared dead; it may block.
	// Until it returns the host cannot attach again, so everything that dies with the host is
	// removed before the host is back. ctx is canceled when the Watch is closed.
	Died func(ctx context.Context, host *nodev1.HostInfo, cause string)
}

// Watch monitors hosts. Its methods are safe for concurrent use.
type Watch struct {
	opts   Options
	tick   time.Duration
	ctx    context.Context //nolint:containedctx // the lifetime of the watch, which Close ends
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu    sync.Mutex // guards the fields below
	hosts map[string]*host
	// recovering is when the time in which hosts return after the watcher's last absence ends:
	// until then no host is declared dead because it is not attached.
	recovering time.Time
}

// host is a known host, attached or not.
type host struct {
	info *nodev1.HostInfo
	// session is the current one; nil while the host is not attached.
	session *Session
	// deadline is when the host will be declared dead, and silence is then the cause.
	deadline time.Time
	silence  string
	// removed is set when the host has been declared dead, and closed when its removal is complete.
	removed chan struct{}
}

// Session is one stream on which a host holds its lease.
type Session struct {
	watch *Watch
	host  *host
	over  chan struct{}
	cause error // why over was closed; written before
}

// New starts a Watch. The caller must Close it.
func New(opts Options) *Watch {
	ctx, cancel := context.WithCancel(context.Background())
	w := &Watch{
		opts: opts,
		// Often enough to detect a death within a quarter of the grace after it is due.
		tick:  max(min(opts.Lease/8, opts.Grace/4), time.Millisecond),
		ctx:   ctx,
		hosts: make(map[string]*host), cancel: cancel,
	}
	w.wg.Go(w.run)
	return w
}

// Close stops the Watch: no host is declared dead any more, and all sessions end. It waits for
// running calls of Died.
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

// ExpectBack gives a host that was known before a restart time to attach again: a lease, and the
// time that a host takes to notice that the watcher is back.
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

// notBefore adjusts a deadline of a host that is not attached. The caller holds mu.
func (w *Watch) notBefore(deadline time.Time) time.Time {
	if deadline.Before(w.recovering) {
		return w.recovering
	}
	return deadline
}

// Attach begins a session, and ends an earlier one of the same host. If the host has been declared
// dead, Attach blocks until its removal is complete.
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
		if removed := h.removed; removed != nil {
			w.mu.Unlock()
			select {
			case <-removed:
				continue
			case <-ctx.Done():
				return nil, fmt.Errorf("wait for the host's removal: %w", context.Cause(ctx))
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

// Report declares a host dead at once, even one that is not known. It returns when the host's
// removal is complete.
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
	if h.removed == nil {
		w.declareDead(h, cause)
	}
	removed := h.removed
	w.mu.Unlock()
	select {
	case <-removed:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for the host's removal: %w", context.Cause(ctx))
	}
}

// Renew extends the lease: there was traffic from the host.
func (s *Session) Renew() {
	s.watch.mu.Lock()
	defer s.watch.mu.Unlock()
	if s.host.session == s {
		s.host.renew(s.watch.opts.Lease)
	}
}

// Over is closed when the session was ended by this side: the host has attached again, was declared
// dead, or the Watch is closed.
func (s *Session) Over() <-chan struct{} { return s.over }

// Err is the reason why the session was ended. Call it after Over is closed.
func (s *Session) Err() error { return s.cause }

// Goodbye ends the session of a host that ends gracefully, and removes the host.
func (s *Session) Goodbye() {
	s.watch.mu.Lock()
	defer s.watch.mu.Unlock()
	if s.host.session == s {
		s.host.session = nil
		delete(s.watch.hosts, s.host.info.GetId())
	}
}

// Broken ends a session whose connection has closed without a goodbye: the grace period begins.
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

// end ends the host's session, if it has one.
func (h *host) end(cause error) {
	if h.session == nil {
		return
	}
	h.session.cause = cause
	close(h.session.over)
	h.session = nil
}

// declareDead declares a host dead. The caller holds mu.
func (w *Watch) declareDead(h *host, cause string) {
	h.removed = make(chan struct{})
	h.end(connect.Errorf(connect.CodeAborted, "the host was declared dead: %s", cause))
	w.wg.Go(func() {
		w.opts.Died(w.ctx, h.info, cause)
		w.mu.Lock()
		defer w.mu.Unlock()
		delete(w.hosts, h.info.GetId())
		close(h.removed)
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

// sweep declares dead the hosts whose deadline has passed. Time in which the watcher was absent
// does not count: attached hosts get a fresh lease, since renewals may be waiting unread, and the
// deadlines of the others are moved.
func (w *Watch) sweep(now time.Time, last *time.Time) {
	// While a machine is suspended only the wall clock continues. Since it can also be set, the
	// watcher may become lenient for a while.
	gap := max(now.Sub(*last), now.Round(0).Sub(last.Round(0)))
	absent := gap > w.tick+absence(w.opts.Grace)
	*last = now
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.ctx.Err() != nil {
		return
	}
	if absent {
		// The time that a host needs to return grows with the absence. After a short one its
		// connection and its lease stream have held, and what breaks from then on is a death. After
		// a long one the host may be in its longest pause between attempts.
		if until := now.Add(w.opts.Grace + min(2*gap, w.opts.Lease+w.opts.Reattach)); until.After(w.recovering) {
			w.recovering = until
		}
	}
	for _, h := range w.hosts {
		switch {
		case h.removed != nil:
		case absent && h.session == nil:
			h.deadline = w.notBefore(h.deadline.Add(gap))
		case absent:
			h.deadline = now.Add(w.opts.Lease)
		case now.After(h.deadline):
			w.declareDead(h, h.silence)
		}
	}
}
