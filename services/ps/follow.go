package ps

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"connectrpc.com/connect/v2"

	psv1 "github.com/raylink/raylink/gen/raylink/ps/v1"
	"github.com/raylink/raylink/internal/backoff"
)

// Follower keeps the newest version of a tag at hand. It fetches each new version in the
// background, and swaps it in once it is complete. It is safe for concurrent use.
type Follower struct {
	client *Client
	tag    string
	end    context.CancelFunc
	ended  chan struct{}
	signal chan struct{}

	// mu guards the fields below.
	mu      sync.Mutex
	current *shared
	// newest is the id of the newest version that is known, also if it is not fetched yet; behind
	// is since when it is newer than current.
	newest uint64
	behind time.Time
	// confirmed is when captain or officer last confirmed the newest id.
	confirmed time.Time
	err       error
}

// shared are parameters with a reference count: the follower's and those of its callers.
type shared struct {
	parameters *Parameters
	mu         sync.Mutex // guards references
	references int
}

func (s *shared) retain() *Parameters {
	s.mu.Lock()
	s.references++
	s.mu.Unlock()
	p := s.parameters
	return &Parameters{id: p.id, version: p.version, bytes: p.bytes, tensors: p.tensors, release: s.release}
}

func (s *shared) release() error {
	if s == nil {
		return nil
	}
	s.mu.Lock()
	s.references--
	last := s.references == 0
	s.mu.Unlock()
	if last {
		return s.parameters.Release()
	}
	return nil
}

// FollowOption configures a follower.
type FollowOption func(*followOptions)

type followOptions struct{ patterns []string }

// Follow follows a tag, which need not exist yet. The caller must Close the follower; closing the
// client closes it too.
func (c *Client) Follow(tag string, opts ...FollowOption) *Follower {
	var o followOptions
	for _, opt := range opts {
		opt(&o)
	}
	ctx, cancel := context.WithCancel(c.life)
	f := &Follower{client: c, tag: tag, end: cancel, ended: make(chan struct{}), signal: make(chan struct{}, 1)}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		f.fail(ErrClosed)
		close(f.ended)
		return f
	}
	c.background.Go(func() {
		defer close(f.ended)
		f.run(ctx, o)
	})
	return f
}

// Current returns the newest version that this follower has fetched, or nil before the first. It
// never waits. The caller must release it.
func (f *Follower) Current() *Parameters {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.current == nil {
		return nil
	}
	return f.current.retain()
}

// Changed returns a channel that has an entry when Current has changed since the last receive, or
// the follower has failed: see [Follower.Err].
func (f *Follower) Changed() <-chan struct{} { return f.signal }

// Staleness returns by how many versions Current is behind the newest one that is known, and for
// how long Current is known to be, or may be, out of date. While the captain is away, age grows.
func (f *Follower) Staleness() (lag uint64, age time.Duration) {
	r, err := f.client.mapped(f.tag)
	f.mu.Lock()
	defer f.mu.Unlock()
	var have uint64
	if f.current != nil {
		have = f.current.parameters.id
	}
	if err == nil && r != nil {
		if state, err := r.State(); err == nil {
			newest := max(state.ID, state.Announced)
			lag = newest - min(newest, have)
			age = state.Unconfirmed
			if lag > 0 {
				age = max(age, state.Behind, time.Since(f.behind))
			}
			return lag, age
		}
	}
	lag, age = f.newest-min(f.newest, have), time.Since(f.confirmed)
	if lag > 0 {
		age = max(age, time.Since(f.behind))
	}
	return lag, age
}

// Err returns why the follower has ended: [ErrEnded] if there will be no further versions,
// [ErrClosed] after Close. Before that it returns nil.
func (f *Follower) Err() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.err
}

// Close ends the follower. Parameters that Current returned remain valid until they are released.
func (f *Follower) Close() error {
	f.end()
	<-f.ended
	f.mu.Lock()
	defer f.mu.Unlock()
	before := f.current
	f.current = nil
	return before.release()
}

// fail records why the follower has ended.
func (f *Follower) fail(err error) {
	f.mu.Lock()
	if f.err == nil {
		f.err = err
	}
	f.mu.Unlock()
	f.notify()
}

func (f *Follower) notify() {
	select {
	case f.signal <- struct{}{}:
	default:
	}
}

// pollInterval is how often mapped files are checked for a version that the officer did not report:
// it may be about to be replaced.
const pollInterval = 50 * time.Millisecond

// run fetches each new version until ctx ends, or the captain has ended for good.
func (f *Follower) run(ctx context.Context, o followOptions) {
	f.mu.Lock()
	f.confirmed = time.Now()
	f.mu.Unlock()
	ids := make(chan uint64, 1)
	watched := make(chan struct{})
	watching, stop := context.WithCancel(ctx)
	defer func() { stop(); <-watched }()
	go func() {
		defer close(watched)
		f.watch(watching, ids)
	}()
	poll := time.NewTicker(pollInterval)
	defer poll.Stop()
	retry := backoff.Backoff{First: 5 * time.Millisecond, Max: 500 * time.Millisecond}
	for {
		err := f.update(ctx, o)
		switch {
		case ctx.Err() != nil:
			f.fail(ErrClosed)
			return
		case err == nil:
			retry.Reset()
		case f.client.ended.Load():
			f.fail(fmt.Errorf("follow %q: %w", f.tag, f.client.endedError()))
			return
		case connect.CodeOf(err) == connect.CodeInvalidArgument || errors.Is(err, errPattern):
			f.fail(fmt.Errorf("follow %q: %w", f.tag, err))
			return
		default:
			_ = retry.Wait(ctx)
			continue
		}
		select {
		case <-ctx.Done():
		case <-ids:
		case <-poll.C:
			if f.client.ended.Load() {
				f.fail(fmt.Errorf("follow %q: %w", f.tag, f.client.endedError()))
				return
			}
		}
	}
}

// watch has captain or officer report new versions.
func (f *Follower) watch(ctx context.Context, ids chan<- uint64) {
	pause := backoff.Backoff{First: 20 * time.Millisecond, Max: time.Second}
	for ctx.Err() == nil {
		began := time.Now()
		_ = f.watchOnce(ctx, ids)
		f.client.recheck(nil) // the officer may have another node by now
		if time.Since(began) > time.Second {
			pause.Reset()
		}
		_ = pause.Wait(ctx)
	}
}

func (f *Follower) watchOnce(ctx context.Context, ids chan<- uint64) error {
	req := &psv1.WatchRequest{Tag: f.tag}
	var stream interface {
		Receive() (*psv1.WatchResponse, error)
		Close() error
	}
	var err error
	if files := f.client.files.Load(); files != nil && files.officer != nil {
		stream, err = files.officer.Watch(ctx, req)
	} else {
		stream, err = f.client.captain.Watch(ctx, req)
	}
	if err != nil {
		return err
	}
	defer func() { _ = stream.Close() }()
	for {
		res, err := stream.Receive()
		if err != nil {
			return err
		}
		if f.confirm(res.GetVersion().GetId()) {
			select {
			case ids <- res.GetVersion().GetId():
			default:
			}
		}
	}
}

// confirm records the newest id, and reports whether it is newer than the current version's.
func (f *Follower) confirm(id uint64) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.confirmed = time.Now()
	have := f.currentID()
	if id > have && f.newest <= have {
		f.behind = f.confirmed
	}
	f.newest = max(f.newest, id)
	return id > have
}

// currentID is the id of the current version, or 0. The caller holds mu.
func (f *Follower) currentID() uint64 {
	if f.current == nil {
		return 0
	}
	return f.current.parameters.id
}

// update fetches the newest version if it is newer than the current one, and swaps it in.
func (f *Follower) update(ctx context.Context, o followOptions) error {
	f.mu.Lock()
	have, known := f.currentID(), f.newest
	f.mu.Unlock()
	if !f.client.Mapped() && known <= have {
		return nil // the captain has reported nothing newer
	}
	p, newer, err := f.client.pullIfNewer(ctx, f.tag, have, o)
	if errors.Is(err, ErrNoVersion) {
		return nil
	}
	if err != nil || !newer {
		return err
	}
	f.mu.Lock()
	before := f.current
	f.current = &shared{parameters: p, references: 1}
	f.newest = max(f.newest, p.id)
	f.mu.Unlock()
	f.notify()
	return before.release()
}
