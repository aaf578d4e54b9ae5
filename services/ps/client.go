package ps

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"connectrpc.com/connect/v2"

	psv1 "github.com/raylink/raylink/gen/raylink/ps/v1"
	"github.com/raylink/raylink/gen/raylink/ps/v1/psv1raylink"
	"github.com/raylink/raylink/runtime/rundir"
	"github.com/raylink/raylink/services/ps/store"
)

// ErrNoVersion means that nothing was pushed under a tag.
var ErrNoVersion = store.ErrNoVersion

// Client gives a process access to a parameter server. It is safe for concurrent use.
type Client struct {
	captain *psv1raylink.Captain
	machine string

	// locating is a semaphore: full while a goroutine locates the machine's officer.
	locating chan struct{}
	// files are the files of the machine's officer; nil if there is none, or they can't be mapped.
	files atomic.Pointer[files]
	// checked is when the officer was last checked for, in nanoseconds since start.
	checked atomic.Int64
	start   time.Time

	// mu guards the fields below.
	mu     sync.Mutex
	closed bool
	pulled map[string]*psv1.PullResponse
}

// files is the mapped state of an officer's directory.
type files struct {
	directory string
	nonce     string

	// mu guards the fields below.
	mu      sync.RWMutex
	closed  bool
	readers map[string]*store.Reader
}

// recheckInterval is how long the result of the last check for an officer is reused.
const recheckInterval = 200 * time.Millisecond

// Open returns a client for a captain.
func Open(ctx context.Context, captain *psv1raylink.Captain) (*Client, error) {
	machine, err := rundir.Machine()
	if err != nil {
		return nil, err
	}
	c := &Client{
		captain: captain, machine: machine, locating: make(chan struct{}, 1), start: time.Now(), pulled: make(map[string]*psv1.PullResponse),
	}
	if err := c.locate(ctx); err != nil {
		return nil, fmt.Errorf("open parameter server: %w", err)
	}
	return c, nil
}

// Captain returns the captain's handle.
func (c *Client) Captain() *psv1raylink.Captain { return c.captain }

// Mapped reports whether the client has mapped an officer's files. If not, it calls the captain.
func (c *Client) Mapped() bool { return c.files.Load() != nil }

// Push makes parameters the newest version of a tag. The caller may modify parameters and info
// afterwards.
func (c *Client) Push(ctx context.Context, tag string, parameters []byte, info map[string]string) (*psv1.Version, error) {
	return c.PushVersion(ctx, tag, 0, parameters, info)
}

// PushVersion is Push with an explicit version number. It fails with the code Aborted unless the
// number is above the newest version's.
func (c *Client) PushVersion(
	ctx context.Context, tag string, version uint64, parameters []byte, info map[string]string,
) (*psv1.Version, error) {
	res, err := c.captain.Push(ctx, &psv1.PushRequest{
		Tag: tag, Parameters: bytes.Clone(parameters), Info: maps.Clone(info), Version: version,
	})
	return res.GetVersion(), err
}

// Tags returns the newest version of each tag, sorted by tag.
func (c *Client) Tags(ctx context.Context) ([]*psv1.Version, error) {
	res, err := c.captain.ListTags(ctx, &psv1.ListTagsRequest{})
	return res.GetVersions(), err
}

// ID returns the id of a tag's newest version, or 0 if there is none. If the parameters are mapped
// it takes nanoseconds, so it can be called in every iteration of a loop.
func (c *Client) ID(ctx context.Context, tag string) (uint64, error) {
	for {
		r, err := c.reader(ctx, tag)
		if err != nil {
			return 0, err
		}
		if r == nil {
			res, err := c.captain.GetID(ctx, &psv1.GetIDRequest{Tag: tag})
			return res.GetId(), err
		}
		id, err := r.ID()
		if err == nil || !c.replaced(err) {
			return id, err
		}
	}
}

// Pull returns a tag's newest parameters, without a copy if they are mapped. It returns
// [ErrNoVersion] if there are none.
func (c *Client) Pull(ctx context.Context, tag string) (*Parameters, error) {
	for {
		r, err := c.reader(ctx, tag)
		if err != nil {
			return nil, err
		}
		if r == nil {
			return c.fetch(ctx, tag)
		}
		p, err := r.Pull()
		if err == nil {
			return &Parameters{version: p.Version(), bytes: p.Bytes(), release: p.Release}, nil
		}
		if !c.replaced(err) {
			return nil, err
		}
	}
}

// replaced reports whether an error means that the files were closed because another officer has
// replaced theirs, rather than by Close.
func (c *Client) replaced(err error) bool {
	if !errors.Is(err, store.ErrClosed) {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return !c.closed
}

// fetch pulls from the captain. It caches the result, which is then not transferred again.
func (c *Client) fetch(ctx context.Context, tag string) (*Parameters, error) {
	c.mu.Lock()
	have := c.pulled[tag]
	c.mu.Unlock()
	res, err := c.captain.Pull(ctx, &psv1.PullRequest{Tag: tag, Have: have.GetVersion().GetId()})
	if err != nil {
		return nil, c.noVersion(ctx, tag, err)
	}
	if res.GetUnchanged() && have != nil {
		res = have
	}
	c.mu.Lock()
	if res.GetVersion().GetId() > c.pulled[tag].GetVersion().GetId() {
		c.pulled[tag] = res
	}
	newest := c.pulled[tag]
	c.mu.Unlock()
	return &Parameters{version: newest.GetVersion(), bytes: newest.GetParameters()}, nil
}

// noVersion converts a NotFound error to [ErrNoVersion] if it is about the tag rather than about
// the captain.
func (c *Client) noVersion(ctx context.Context, tag string, err error) error {
	if connect.CodeOf(err) != connect.CodeNotFound {
		return err
	}
	if _, asked := c.captain.GetID(ctx, &psv1.GetIDRequest{Tag: tag}); asked != nil {
		return err
	}
	return fmt.Errorf("%w: %w", ErrNoVersion, err)
}

// Parameters are one version of a tag. They do not change until they are released.
type Parameters struct {
	version *psv1.Version
	bytes   []byte
	release func() error
}

// Version describes the parameters. It must not be modified.
func (p *Parameters) Version() *psv1.Version { return p.version }

// Bytes returns the parameters. They must not be modified: writing to mapped memory crashes the
// process. They must not be used after Release.
func (p *Parameters) Bytes() []byte { return p.bytes }

// Release releases the parameters. Further calls do nothing.
func (p *Parameters) Release() error {
	p.bytes = nil
	if p.release == nil {
		return nil
	}
	return p.release()
}

// Close unmaps the files. Parameters that were pulled remain valid until they are released.
func (c *Client) Close() error {
	c.mu.Lock()
	c.closed = true
	f := c.files.Swap(nil)
	c.mu.Unlock()
	return f.close()
}

// reader returns the reader of a tag's mapped files, or nil if calls go to the captain.
func (c *Client) reader(ctx context.Context, tag string) (*store.Reader, error) {
	if int64(time.Since(c.start))-c.checked.Load() >= int64(recheckInterval) {
		if err := c.recheck(ctx, tag); err != nil {
			return nil, err
		}
	}
	f := c.files.Load()
	if f == nil {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.closed {
			return nil, store.ErrClosed
		}
		return nil, nil //nolint:nilnil // nil means: call the captain
	}
	r, err := f.reader(tag)
	if err != nil && c.replaced(err) {
		return c.reader(ctx, tag)
	}
	return r, err
}

// recheck checks whether the officer is alive, and locates the next one if it is not.
func (c *Client) recheck(ctx context.Context, tag string) error {
	select {
	case c.locating <- struct{}{}:
		defer func() { <-c.locating }()
	default:
		return nil // another goroutine is checking
	}
	if f := c.files.Load(); f != nil {
		served, err := f.served(tag)
		if err != nil {
			return err
		}
		if served {
			c.checked.Store(int64(time.Since(c.start)))
			return nil
		}
	}
	return c.locate(ctx)
}

// locate gets the machine's officer from the captain, and maps its files if its nonce is found in
// its directory.
func (c *Client) locate(ctx context.Context) error {
	res, err := c.captain.Locate(ctx, &psv1.LocateRequest{Machine: c.machine})
	if err != nil {
		return fmt.Errorf("locate the machine's officer: %w", err)
	}
	d := res.GetDirectory()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return store.ErrClosed
	}
	before := c.files.Load()
	switch {
	case !rundir.Proves(d.GetDirectory(), d.GetNonce()):
		c.files.Store(nil)
	case before != nil && before.directory == d.GetDirectory() && before.nonce == d.GetNonce():
		before = nil // unchanged: stays open
	default:
		c.files.Store(&files{directory: d.GetDirectory(), nonce: d.GetNonce(), readers: make(map[string]*store.Reader)})
	}
	c.checked.Store(int64(time.Since(c.start)))
	return before.close()
}

func (f *files) reader(tag string) (*store.Reader, error) {
	f.mu.RLock()
	r, ok := f.readers[tag]
	f.mu.RUnlock()
	if ok {
		return r, nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return nil, store.ErrClosed
	}
	if r, ok := f.readers[tag]; ok {
		return r, nil
	}
	r, err := store.NewReader(f.directory, tag)
	if err != nil {
		return nil, err
	}
	f.readers[tag] = r
	return r, nil
}

// served reports whether the officer is alive.
func (f *files) served(tag string) (bool, error) {
	r, err := f.reader(tag)
	if err != nil {
		return false, err
	}
	return r.Served()
}

func (f *files) close() error {
	if f == nil {
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = true
	var errs []error
	for _, r := range f.readers {
		errs = append(errs, r.Close())
	}
	return errors.Join(errs...)
}
