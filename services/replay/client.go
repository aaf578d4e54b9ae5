package replay

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	replayv1 "github.com/raylink/raylink/gen/raylink/replay/v1"
	"github.com/raylink/raylink/gen/raylink/replay/v1/replayv1raylink"
	"github.com/raylink/raylink/runtime/rundir"
	"github.com/raylink/raylink/services/replay/ring"
)

// Client gives a process access to a replay. It is safe for concurrent use.
//
// When a replay is restarted, the client switches to the new ring. The rows of the old one are
// lost. If the new ring is on another machine, the client goes through the node; it maps the ring
// again once that is possible.
//
// If another node takes over the replay's file, a client that has mapped the ring keeps it, with
// its heads and areas, and calls that node from then on. Until then its calls fail.
type Client struct {
	// handle is replaced when another node takes over the file.
	handle atomic.Pointer[replayv1raylink.Replay]
	layout ring.Layout
	// tables are as they were configured when the client was opened.
	tables []*replayv1.TableConfig

	// background are the calls that writers and samplers make on their own. ctx ends them.
	ctx        context.Context //nolint:containedctx // see background
	cancel     context.CancelCauseFunc
	background sync.WaitGroup

	// updates are those of priorities on their way.
	updates updates

	// relocating is a semaphore: full while a goroutine asks the node where its ring is now.
	relocating chan struct{}
	// mu guards the fields below.
	mu     sync.Mutex
	closed bool
	// mapping is nil if the replay is on another machine. Then described is when the node was last
	// asked where the ring is. It can be loaded without mu.
	mapping   atomic.Pointer[mapping]
	described time.Time
}

// mapping is a ring that the client has mapped.
type mapping struct {
	ring *ring.Ring
	// seen is when the ring's creator was last found alive, on the clock of sinceStart.
	seen atomic.Int64
	// takeovers is how often the ring had been taken over when the client last looked for its node.
	takeovers atomic.Uint64
}

// started is when the process started.
var started = time.Now() //nolint:gochecknoglobals // constant

// sinceStart is a clock that only costs half as much as that of time.Now.
func sinceStart() int64 { return int64(time.Since(started)) }

const (
	// recheckInterval is how long the ring's creator is assumed to be alive after it was found
	// alive: writes that begin within this time after its death are acknowledged, and lost. A check
	// costs a microsecond, relying on the last one a few nanoseconds.
	recheckInterval = time.Millisecond
	// remapInterval is how often a client that goes through the node asks whether it can map the
	// ring: a replay that was restarted may be on its machine.
	remapInterval = 5 * time.Second
)

// OpenClient returns a client for a replay, whose rows are a [Batch]: [Open] returns one that has
// them as Go slices. It gets the replay's description, and maps its ring if that is possible.
func OpenClient(ctx context.Context, handle *replayv1raylink.Replay) (*Client, error) {
	c := &Client{relocating: make(chan struct{}, 1)}
	c.updates.client = c
	c.handle.Store(handle)
	description, err := handle.Describe(ctx, &replayv1.DescribeRequest{})
	if err != nil {
		return nil, fmt.Errorf("open replay: %w", err)
	}
	c.layout = layoutOf(description.GetColumns(), description.GetCapacity())
	if err := c.layout.Validate(); err != nil {
		return nil, fmt.Errorf("open replay: %w", err)
	}
	c.tables = description.GetTables()
	c.described = time.Now()
	c.mapping.Store(mapRing(description))
	c.ctx, c.cancel = context.WithCancelCause(context.WithoutCancel(ctx))
	return c, nil
}

// mapRing maps the ring of a description. It returns nil if the ring is on another machine, or if
// mapping fails, which is not an error: whatever the reason, the client can go through the node.
func mapRing(description *replayv1.DescribeResponse) *mapping {
	if rundir.IsElsewhere(description.GetMachine()) {
		return nil
	}
	id, err := ring.ParseID(description.GetRingId())
	if err != nil {
		return nil
	}
	r, err := ring.Open(description.GetFile(), id)
	if err != nil {
		return nil
	}
	m := &mapping{ring: r}
	m.seen.Store(sinceStart())
	m.takeovers.Store(r.Takeovers())
	return m
}

// Handle returns the replay's handle: the one that the client was opened with, or that of the node
// that has taken over the replay's file since.
func (c *Client) Handle() *replayv1raylink.Replay {
	if m := c.mapping.Load(); m != nil {
		if n := m.ring.Takeovers(); n != m.takeovers.Load() {
			c.follow(m, n)
		}
	}
	return c.handle.Load()
}

// Layout returns the columns and the capacity. It must not be modified.
func (c *Client) Layout() ring.Layout { return c.layout }

// Mapped reports whether the client has mapped the ring. If not, it goes through the node.
func (c *Client) Mapped() bool {
	return c.mapping.Load() != nil
}

// NewBatch returns a batch of n zeroed rows.
func (c *Client) NewBatch(n int) (*Batch, error) { return ring.NewBatch(c.layout, n) }

// Close unmaps the ring. Areas that are held remain valid until they are released. Items that were
// not confirmed may be lost: see [TypedWriter.Flush].
func (c *Client) Close() error {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.cancel(ring.ErrClosed)
	c.background.Wait()
	m := c.mapping.Swap(nil)
	if m == nil {
		return nil
	}
	return m.ring.Close()
}

// start runs a function in the background, which ends when the context does.
func (c *Client) start(run func(ctx context.Context)) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return ring.ErrClosed
	}
	c.background.Go(func() { run(c.ctx) })
	return nil
}

// opened returns [ring.ErrClosed] if the client was closed.
func (c *Client) opened() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return ring.ErrClosed
	}
	return nil
}

// current returns the current ring, or nil if calls go through the node.
func (c *Client) current(ctx context.Context) (*ring.Ring, error) {
	r, served, err := c.lastSeen()
	if err != nil || served {
		return r, err
	}
	return c.relocate(ctx, r)
}

// lastSeen returns the mapped ring and whether it is still served.
func (c *Client) lastSeen() (r *ring.Ring, served bool, err error) {
	now := sinceStart()
	if m := c.mapping.Load(); m != nil && now-m.seen.Load() < int64(recheckInterval) {
		return m.ring, true, nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, false, ring.ErrClosed
	}
	m := c.mapping.Load()
	if m == nil {
		// Other goroutines go on through the node meanwhile.
		due := time.Since(c.described) >= remapInterval
		if due {
			c.described = time.Now()
		}
		return nil, !due, nil
	}
	orphaned, err := m.ring.Orphaned()
	if err == nil && !orphaned {
		m.seen.Store(now)
	}
	return m.ring, !orphaned, err
}

// relocate replaces a ring that has ended, or none (nil), by the current one, unless another
// goroutine did so already.
func (c *Client) relocate(ctx context.Context, ended *ring.Ring) (*ring.Ring, error) {
	select {
	case c.relocating <- struct{}{}:
		defer func() { <-c.relocating }()
	case <-ctx.Done():
		return nil, fmt.Errorf("waiting for another call to locate the replay's new ring: %w", ctx.Err())
	}
	if r, changed, err := c.changed(ended); changed || err != nil {
		return r, err
	}
	if ended != nil && c.takenOver(ended) {
		return ended, nil
	}
	description, err := c.Handle().Describe(ctx, &replayv1.DescribeRequest{})
	if err != nil && ended == nil {
		return nil, nil //nolint:nilnil // go on through the node, whose next call has the error
	}
	if err != nil {
		return nil, fmt.Errorf("the replay's ring is no longer served: %w", ringError(err))
	}
	if err := compareColumns("", c.layout.Columns, layoutOf(description.GetColumns(), 1).Columns); err != nil {
		return nil, fmt.Errorf("use the restarted replay: %w", err)
	}
	if ended != nil && description.GetRingId() == ended.ID().String() {
		// The node answered before it ended, or the ring was taken over since.
		if c.takenOver(ended) {
			return ended, nil
		}
		cause := ring.ErrEnded
		if orphaned, err := ended.Orphaned(); err != nil || orphaned {
			cause = ring.ErrOrphaned
		}
		return nil, fmt.Errorf("the replay's ring is no longer served: %w", cause)
	}
	return c.switchTo(mapRing(description))
}

// takenOver reports whether a ring that was no longer served is served again, because a node has
// taken over its file.
func (c *Client) takenOver(r *ring.Ring) bool {
	served, err := r.Served()
	if err != nil || !served {
		return false
	}
	if m := c.mapping.Load(); m != nil && m.ring == r {
		m.seen.Store(sinceStart())
	}
	return true
}

// follow makes the client call the node that has taken over the ring's file, the n-th that did.
func (c *Client) follow(m *mapping, n uint64) {
	known := c.handle.Load()
	if known.Ref().NID() != "" { // otherwise the node is outside any system
		ref, err := readNodeFile(m.ring.Path() + nodeSuffix)
		if err != nil {
			return // a later node is writing it: retry next time
		}
		handle, err := replayv1raylink.ReplayFrom(known.Ref(), ref)
		if err != nil {
			return
		}
		c.handle.CompareAndSwap(known, handle)
	}
	m.takeovers.Store(n)
}

// changed returns the current ring and whether it differs from the one that has ended.
func (c *Client) changed(ended *ring.Ring) (*ring.Ring, bool, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.closed:
		return nil, false, ring.ErrClosed
	case c.mapping.Load() == nil:
		return nil, ended != nil, nil
	default:
		r := c.mapping.Load().ring
		return r, r != ended, nil
	}
}

// switchTo replaces the mapping. m is nil if calls go through the node from then on.
func (c *Client) switchTo(m *mapping) (*ring.Ring, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	before := c.mapping.Load()
	if c.closed {
		if m == nil {
			return nil, ring.ErrClosed
		}
		return nil, errors.Join(ring.ErrClosed, m.ring.Close())
	}
	c.described = time.Now()
	c.mapping.Store(m)
	if before != nil {
		if err := before.ring.Close(); err != nil {
			return nil, err
		}
	}
	if m == nil {
		return nil, nil //nolint:nilnil // nil means: go through the node
	}
	return m.ring, nil
}

// with calls local with the current ring, or remote if there is none. It tries again once if the
// ring has ended meanwhile.
func (c *Client) with(ctx context.Context, local func(*ring.Ring) error, remote func() error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	r, err := c.current(ctx)
	if err != nil {
		return err
	}
	if r != nil {
		if err = local(r); !gone(err) {
			return err
		}
		if r, err = c.relocate(ctx, r); err != nil {
			return err
		}
		if r != nil {
			return local(r)
		}
	}
	return ringError(remote())
}

// gone reports whether an error means that a ring can't be used any more.
func gone(err error) bool {
	return err != nil && (errors.Is(err, ring.ErrEnded) || errors.Is(err, ring.ErrClosed) || errors.Is(err, ring.ErrOrphaned))
}

const (
	// trustedWrites is how many writes of a writer rely on the check that one before them made, if
	// as many before took less than recheckInterval. Reading the clock costs as much as the rest of
	// a write of a small row.
	trustedWrites = 63
	// maxTrusted is the maximum size of such a write in bytes, beyond one row.
	maxTrusted = 16 << 10
)

// trust is what a writer knows about the node: that it was alive a few writes ago. It is not safe
// for concurrent use.
type trust struct {
	mapping *mapping
	// left is how many more writes may rely on it. checked is when it was last renewed, on the
	// clock of sinceStart.
	left    int
	checked int64
}

// take reports whether a write may rely on an earlier check.
func (t *trust) take(c *Client) bool {
	if c.mapping.Load() != t.mapping || t.left == 0 && !t.extend() {
		return false
	}
	t.left--
	return true
}

// extend is renew where any writer of the client has found the node alive a short time ago.
func (t *trust) extend() bool {
	now := sinceStart()
	if t.mapping == nil || now-t.mapping.seen.Load() >= int64(recheckInterval) {
		return false
	}
	t.left = 1
	if now-t.checked < int64(recheckInterval) {
		t.left += trustedWrites
	}
	t.checked = now
	return true
}

// renew is called after the node of a ring was found alive, before a write.
func (t *trust) renew(c *Client, r *ring.Ring) {
	t.mapping, t.left = c.mapping.Load(), 0
	if t.mapping != nil && t.mapping.ring != r {
		t.mapping = nil
	}
	if t.extend() {
		t.left--
	}
}
