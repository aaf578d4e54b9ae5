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

// ErrNoVersion is the pulling of a tag under which nothing was pushed.
var ErrNoVersion = store.ErrNoVersion

// Client is a parameter server as a process sees it. Its methods may be called from any goroutine.
type Client struct {
	captain *psv1raylink.Captain
	machine string

	// looking is full while somebody looks for the machine's officer.
	looking chan struct{}
	// files are the officer's; nil where there is none, or its files can't be mapped.
	files atomic.Pointer[files]
	// looked is when the officer was last looked for, in nanoseconds since start.
	looked atomic.Int64
	start  time.Time

	// mu guards the fields below.
	mu     sync.Mutex
	closed bool
	pulled map[string]*psv1.PullResponse
}

// files are what a client has mapped of an officer's.
type files struct {
	directory string
	nonce     string

	// mu guards the fields below.
	mu      sync.RWMutex
	closed  bool
	readers map[string]*store.Reader
}

// lookAgain is how long an officer that was seen is taken to be there, and how long one that was not is not looked for.
const lookAgain = 200 * time.Millisecond

// Open makes a client for a captain's handle.
func Open(ctx context.Context, captain *psv1raylink.Captain) (*Client, error) {
	machine, err := rundir.Machine()
	if err != nil {
		return nil, err
	}
	c := &Client{
		captain: captain, machine: machine, looking: make(chan struct{}, 1), start: time.Now(), pulled: make(map[string]*psv1.PullResponse),
	}
	if err := c.locate(ctx); err != nil {
		return nil, fmt.Errorf("open parameter server: %w", err)
	}
	return c, nil
}

// Captain is the captain's handle.
func (c *Client) Captain() *psv1raylink.Captain { return c.captain }

// Mapped says whether the client reads an officer's files, or asks the captain.
func (c *Client) Mapped() bool { return c.files.Load() != nil }

// Push makes parameters the newest of a tag. They and the info stay the caller's.
func (c *Client) Push(ctx context.Context, tag string, parameters []byte, info map[string]string) (*psv1.Version, error) {
	return c.PushVersion(ctx, tag, 0, parameters, info)
}

// PushVersion is Push under a number of the pusher's own. The error has the code Aborted where it is not above the newest one.
func (c *Client) PushVersion(
	ctx context.Context, tag string, version uint64, parameters []byte, info map[string]string,
) (*psv1.Version, error) {
	res, err := c.captain.Push(ctx, &psv1.PushRequest{
		Tag: tag, Parameters: bytes.Clone(parameters), Info: maps.Clone(info), Version: version,
	})
	return res.GetVersion(), err
}

// Tags are the newest versions of all tags, sorted by tag.
func (c *Client) Tags(ctx context.Context) ([]*psv1.Version, error) {
	res, err := c.captain.ListTags(ctx, &psv1.ListTagsRequest{})
	return res.GetVersions(), err
}

// ID is the id of a tag's newest version, or 0 before there is one. Where the parameters are mapped it can be asked for in
// each step of a loop: it costs some nanoseconds.
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
		if err == nil || !c.turned(err) {
			return id, err
		}
	}
}

// Pull gives a tag's newest parameters: mapped ones in place, others as they came. [ErrNoVersion] says that there are none yet.
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
		if !c.turned(err) {
			return nil, err
		}
	}
}

// turned says whether an error is that of files that were closed because another officer has come, and not by Close.
func (c *Client) turned(err error) bool {
	if !errors.Is(err, store.ErrClosed) {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return !c.closed
}

// fetch pulls from the captain. What came last is kept, and not sent again.
func (c *Client) fetch(ctx context.Context, tag string) (*Parameters, error) {
	c.mu.Lock()
	have := c.pulled[tag]
	c.mu.Unlock()
	res, err := c.captain.Pull(ctx, &psv1.PullRequest{Tag: tag, Have: have.GetVersion().GetId()})
	if err != nil {
		return nil, c.missing(ctx, tag, err)
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

// missing tells a tag without a version from a captain who is not found himself.
func (c *Client) missing(ctx context.Context, tag string, err error) error {
	if connect.CodeOf(err) != connect.CodeNotFound {
		return err
	}
	if _, asked := c.captain.GetID(ctx, &psv1.GetIDRequest{Tag: tag}); asked != nil {
		return err
	}
	return fmt.Errorf("%w: %w", ErrNoVersion, err)
}

// Parameters are one version of a tag. They are what was pushed, and stay so until they are released.
type Parameters struct {
	version *psv1.Version
	bytes   []byte
	release func() error
}

// Version says which they are. It must not be changed.
func (p *Parameters) Version() *psv1.Version { return p.version }

// Bytes are the parameters. They must not be changed: where they are mapped, who writes to them ends the process. They must
// not be used after Release.
func (p *Parameters) Bytes() []byte { return p.bytes }

// Release lets the parameters go. Only the first call does anything.
func (p *Parameters) Release() error {
	p.bytes = nil
	if p.release == nil {
		return nil
	}
	return p.release()
}

// Close gives the mapped files back. Parameters that were pulled stay until they are released.
func (c *Client) Close() error {
	c.mu.Lock()
	c.closed = true
	f := c.files.Swap(nil)
	c.mu.Unlock()
	return f.close()
}

// reader is the reader of a tag's mapped files, or nil where the captain is to be asked.
func (c *Client) reader(ctx context.Context, tag string) (*store.Reader, error) {
	if int64(time.Since(c.start))-c.looked.Load() >= int64(lookAgain) {
		if err := c.look(ctx, tag); err != nil {
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
		return nil, nil //nolint:nilnil // no files and no error: that is how it is
	}
	r, err := f.reader(tag)
	if err != nil && c.turned(err) {
		return c.reader(ctx, tag)
	}
	return r, err
}

// look finds out whether the officer is still there, and where the next one is.
func (c *Client) look(ctx context.Context, tag string) error {
	select {
	case c.looking <- struct{}{}:
		defer func() { <-c.looking }()
	default:
		return nil // somebody else does
	}
	if f := c.files.Load(); f != nil {
		served, err := f.served(tag)
		if err != nil {
			return err
		}
		if served {
			c.looked.Store(int64(time.Since(c.start)))
			return nil
		}
	}
	return c.locate(ctx)
}

// locate asks the captain for the machine's officer, and maps its files if they are the ones that it means.
func (c *Client) locate(ctx context.Context) error {
	res, err := c.captain.Locate(ctx, &psv1.LocateRequest{Machine: c.machine})
	if err != nil {
		return fmt.Errorf("look for the machine's officer: %w", err)
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
		before = nil // the same: nothing changes
	default:
		c.files.Store(&files{directory: d.GetDirectory(), nonce: d.GetNonce(), readers: make(map[string]*store.Reader)})
	}
	c.looked.Store(int64(time.Since(c.start)))
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

// served says whether the officer is there.
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
