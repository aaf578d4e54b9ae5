package replay

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	replayv1 "github.com/raylink/raylink/gen/raylink/replay/v1"
	"github.com/raylink/raylink/gen/raylink/replay/v1/replayv1raylink"
	"github.com/raylink/raylink/services/replay/ring"
)

// Client is a replay as a process sees it. Its methods may be called from any goroutine.
//
// Where it maps the ring it goes on with the next one when the replay is started again; what was in the one before is gone with it.
type Client struct {
	handle *replayv1raylink.Replay
	layout ring.Layout

	// turning is full while somebody finds out where the replay is now.
	turning chan struct{}
	// mu guards the fields below.
	mu     sync.Mutex
	closed bool
	// mapping is nil where the replay is elsewhere.
	mapping *mapping
}

// mapping is a ring that the client has mapped. It is closed when the last one that uses it lets it go.
type mapping struct {
	ring *ring.Ring
	// seen is when its creator was last seen.
	seen time.Time
}

// seenFor is how long a replay that was seen is taken to be there. To look costs a microsecond, not to look a few nanoseconds.
const seenFor = 100 * time.Millisecond

// Open makes a client for a replay. It asks the replay what it is, and maps its ring if that is possible.
func Open(ctx context.Context, handle *replayv1raylink.Replay) (*Client, error) {
	c := &Client{handle: handle, turning: make(chan struct{}, 1)}
	description, err := handle.Describe(ctx, &replayv1.DescribeRequest{})
	if err != nil {
		return nil, fmt.Errorf("open replay: %w", err)
	}
	c.layout = layoutOf(description.GetColumns(), description.GetCapacity())
	if err := c.layout.Validate(); err != nil {
		return nil, fmt.Errorf("open replay: %w", err)
	}
	c.mapping = mapped(description)
	return c, nil
}

// mapped maps the ring of a description, or returns nil. That it can't be mapped is no error: whatever the reason is, the node
// can be asked.
func mapped(description *replayv1.DescribeResponse) *mapping {
	id, err := ring.ParseID(description.GetRingId())
	if err != nil {
		return nil
	}
	r, err := ring.Open(description.GetFile(), id)
	if err != nil {
		return nil
	}
	return &mapping{ring: r, seen: time.Now()}
}

// Handle is the replay's handle.
func (c *Client) Handle() *replayv1raylink.Replay { return c.handle }

// Layout is what a row is, and how many there are. It must not be changed.
func (c *Client) Layout() ring.Layout { return c.layout }

// Mapped says whether the client has the ring mapped, or goes through the node.
func (c *Client) Mapped() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.mapping != nil
}

// NewBatch makes a batch of n zeroed rows.
func (c *Client) NewBatch(n int) (*Batch, error) { return ring.NewBatch(c.layout, n) }

// Close gives the mapping back. Areas that are held stay until they are released.
func (c *Client) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	m := c.mapping
	c.mapping = nil
	if m == nil {
		return nil
	}
	return m.ring.Close()
}

// current is the ring as it is now: nil where the node is to be asked.
func (c *Client) current(ctx context.Context) (*ring.Ring, error) {
	r, there, err := c.looked()
	if err != nil || there {
		return r, err
	}
	return c.next(ctx, r)
}

// looked is the ring as it was last seen, and whether it is still served.
func (c *Client) looked() (r *ring.Ring, there bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, false, ring.ErrClosed
	}
	if c.mapping == nil {
		return nil, true, nil
	}
	now := time.Now()
	if now.Sub(c.mapping.seen) < seenFor {
		return c.mapping.ring, true, nil
	}
	orphaned, err := c.mapping.ring.Orphaned()
	if err == nil && !orphaned {
		c.mapping.seen = now
	}
	return c.mapping.ring, !orphaned, err
}

// next asks the replay where it is now, after a ring that has ended, unless somebody else has done so.
func (c *Client) next(ctx context.Context, ended *ring.Ring) (*ring.Ring, error) {
	select {
	case c.turning <- struct{}{}:
		defer func() { <-c.turning }()
	case <-ctx.Done():
		return nil, fmt.Errorf("waiting for the replay to be found again: %w", ctx.Err())
	}
	if r, changed, err := c.changed(ended); changed || err != nil {
		return r, err
	}
	description, err := c.handle.Describe(ctx, &replayv1.DescribeRequest{})
	if err != nil {
		return nil, fmt.Errorf("the replay's ring is no longer served: %w", err)
	}
	if now := layoutOf(description.GetColumns(), description.GetCapacity()); !now.SameRows(c.layout) {
		return nil, fmt.Errorf("%w: the replay has other columns now: %v, before %v", ring.ErrLayout, now.Columns, c.layout.Columns)
	}
	return c.turnTo(mapped(description))
}

// changed is the ring, if it is another one than the one that has ended.
func (c *Client) changed(ended *ring.Ring) (*ring.Ring, bool, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.closed:
		return nil, false, ring.ErrClosed
	case c.mapping == nil:
		return nil, true, nil
	default:
		return c.mapping.ring, c.mapping.ring != ended, nil
	}
}

// turnTo goes on with another mapping, or with none.
func (c *Client) turnTo(m *mapping) (*ring.Ring, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	before := c.mapping
	if c.closed {
		if m == nil {
			return nil, ring.ErrClosed
		}
		return nil, errors.Join(ring.ErrClosed, m.ring.Close())
	}
	c.mapping = m
	if err := before.ring.Close(); err != nil {
		return nil, err
	}
	if m == nil {
		return nil, nil //nolint:nilnil // no ring and no error: that is how it is
	}
	return m.ring, nil
}

// with does something with the ring, or asks the node, and once more where the ring has ended meanwhile.
func (c *Client) with(ctx context.Context, there func(*ring.Ring) error, elsewhere func() error) error {
	r, err := c.current(ctx)
	if err != nil {
		return err
	}
	if r != nil {
		err = there(r)
		if !errors.Is(err, ring.ErrEnded) && !errors.Is(err, ring.ErrClosed) {
			return err
		}
		if r, err = c.next(ctx, r); err != nil {
			return err
		}
		if r != nil {
			return there(r)
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	return restored(elsewhere())
}
