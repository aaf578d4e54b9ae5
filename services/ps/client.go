package ps

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"connectrpc.com/connect/v2"

	nodev1 "github.com/raylink/raylink/gen/raylink/node/v1"
	psv1 "github.com/raylink/raylink/gen/raylink/ps/v1"
	"github.com/raylink/raylink/gen/raylink/ps/v1/psv1raylink"
	"github.com/raylink/raylink/internal/backoff"
	"github.com/raylink/raylink/runtime/rundir"
	"github.com/raylink/raylink/services/ps/store"
)

// Errors that a caller may act on. They are returned wrapped: compare with [errors.Is].
var (
	// ErrNoVersion means that nothing was pushed under a tag, or that it was deleted since.
	ErrNoVersion = store.ErrNoVersion
	// ErrClosed means that the client was closed.
	ErrClosed = store.ErrClosed
	// ErrEnded means that the captain has ended and is not started again: there will be no further
	// versions.
	ErrEnded = errors.New("the parameter server's captain has ended")
)

// Client gives a process access to a parameter server. It is safe for concurrent use.
type Client struct {
	captain *psv1raylink.Captain
	machine string
	// find returns the handle of an officer.
	find func(ref *nodev1.NodeRef) (*psv1raylink.Officer, error)
	// mayHost is set if this process may host the machine's officer.
	mayHost bool

	// life ends when the client is closed; background are its goroutines.
	life       context.Context //nolint:containedctx // the client's life is this context
	end        context.CancelFunc
	background sync.WaitGroup

	// files are the files of the machine's officer; nil if there is none, or they can't be mapped.
	files atomic.Pointer[files]
	// locating is set while a goroutine locates the machine's officer.
	locating atomic.Bool
	// checked is when the officer was last checked for, in nanoseconds since start.
	checked atomic.Int64
	start   time.Time
	// ended is set once the captain has ended and is not started again.
	ended atomic.Bool

	// mu guards the fields below.
	mu     sync.Mutex
	closed bool
	views  map[string]*view
	leave  func() // ends the hosting of the machine's officer; nil without one
}

// view is what a client knows of a tag.
type view struct {
	tag string
	// floor is the newest id that the client has shown, or has been given for a push. It shows no
	// older one.
	floor atomic.Uint64

	// fetching is held while the tag is fetched from the captain, so that it is transferred once.
	fetching sync.Mutex
	// mu guards fetched, the version that was last fetched from the captain; the view holds it.
	mu      sync.Mutex
	fetched *fetched
}

// raise raises the floor, and returns it.
func (v *view) raise(id uint64) uint64 {
	for {
		floor := v.floor.Load()
		if id <= floor || v.floor.CompareAndSwap(floor, id) {
			return max(id, floor)
		}
	}
}

// OpenOption configures a client.
type OpenOption func(*openOptions)

type openOptions struct{ withoutOfficer bool }

// WithoutOfficer has this process never host the officer of its machine, nor wait for it. It uses
// the one that another process hosts, if there is one. This is for processes that end soon.
func WithoutOfficer() OpenOption { return func(o *openOptions) { o.withoutOfficer = true } }

// recheckInterval is how long the result of the last check for an officer is reused.
const recheckInterval = 200 * time.Millisecond

// officerWait bounds how long Open waits for the machine's first officer.
const officerWait = 2 * time.Second

// Open returns a client for a captain. If this machine has no officer of the captain, and the
// captain creates none, this process hosts it from now on, until its last client is closed. Open
// waits until the officer has enlisted, two seconds at most. The caller must Close the client.
func Open(ctx context.Context, captain *psv1raylink.Captain, opts ...OpenOption) (*Client, error) {
	machine, err := rundir.Machine()
	if err != nil {
		return nil, err
	}
	find := func(ref *nodev1.NodeRef) (*psv1raylink.Officer, error) {
		return psv1raylink.OfficerFrom(captain.Ref(), ref)
	}
	return open(ctx, captain, machine, find, opts...)
}

func open(
	ctx context.Context, captain *psv1raylink.Captain, machine string,
	find func(*nodev1.NodeRef) (*psv1raylink.Officer, error), opts ...OpenOption,
) (*Client, error) {
	var o openOptions
	for _, opt := range opts {
		opt(&o)
	}
	c := &Client{captain: captain, machine: machine, find: find, start: time.Now(), views: make(map[string]*view)}
	c.mayHost = !o.withoutOfficer && captain.Ref().NodeRef().GetHost() != nil
	c.life, c.end = context.WithCancel(context.Background())
	c.background.Go(c.watchCaptain)
	res, err := c.locate(ctx)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open parameter server %s: %w", captain, err), c.Close())
	}
	if c.mayHost && (res.GetWanted() || res.GetComing()) {
		if err := c.awaitOfficer(ctx); err != nil {
			return nil, errors.Join(fmt.Errorf("open parameter server %s: %w", captain, err), c.Close())
		}
	}
	return c, nil
}

// watchCaptain waits until the captain has ended and is not started again. Then it removes the
// files that the captain's process has left on this machine, if that was killed.
func (c *Client) watchCaptain() {
	pause := backoff.Backoff{First: 100 * time.Millisecond, Max: time.Second}
	for {
		if c.captain.Ref().Ended(c.life) != nil {
			return
		}
		if !c.captain.Ref().Record().GetRestarts() {
			break
		}
		if pause.Wait(c.life) != nil {
			return
		}
	}
	c.ended.Store(true)
	// The process may still be about to end.
	for f := c.files.Load(); f != nil && errors.Is(store.RemoveOrphan(f.directory), store.ErrInUse); {
		if pause.Wait(c.life) != nil {
			return
		}
	}
}

// endedError is the error of calls after the captain has ended for good.
func (c *Client) endedError() error {
	return fmt.Errorf("%w: %s", ErrEnded, c.captain.Ref().Record().GetCause())
}

// awaitOfficer waits for the machine's officer. Without one the client calls the captain.
func (c *Client) awaitOfficer(ctx context.Context) error {
	deadline, cancel := context.WithTimeout(ctx, officerWait)
	defer cancel()
	pause := backoff.Backoff{First: 5 * time.Millisecond, Max: 50 * time.Millisecond}
	for c.files.Load() == nil && pause.Wait(deadline) == nil {
		if _, err := c.locate(deadline); err != nil && deadline.Err() == nil {
			return err
		}
	}
	return ctx.Err()
}

// Captain returns the captain's handle.
func (c *Client) Captain() *psv1raylink.Captain { return c.captain }

// Mapped reports whether the client has mapped an officer's files. If not, it calls the captain.
func (c *Client) Mapped() bool { return c.files.Load() != nil }

// Close unmaps the files, and ends the machine's officer if this process hosts it for no other
// client. Parameters that were pulled remain valid until they are released.
func (c *Client) Close() error {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return nil
	}
	c.closed = true
	f := c.files.Swap(nil)
	views := c.views
	c.views = nil
	leave := c.leave
	c.mu.Unlock()
	c.end()
	c.background.Wait()
	for _, v := range views {
		v.setFetched(nil)
	}
	err := f.close()
	if leave != nil {
		leave()
	}
	return err
}

// view returns the view of a tag.
func (c *Client) view(tag string) (*view, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, ErrClosed
	}
	v, ok := c.views[tag]
	if !ok {
		v = &view{tag: tag}
		c.views[tag] = v
	}
	return v, nil
}

// Tags returns the newest version of each tag, sorted by tag.
func (c *Client) Tags(ctx context.Context) ([]*psv1.Version, error) {
	res, err := c.captain.ListTags(ctx, &psv1.ListTagsRequest{})
	return res.GetVersions(), err
}

// List returns the newest version of each tag that begins with a prefix, sorted by tag. The tag
// "policy/best" is found by the prefix "policy/".
func (c *Client) List(ctx context.Context, prefix string) ([]*psv1.Version, error) {
	versions, err := c.Tags(ctx)
	return slices.DeleteFunc(versions, func(v *psv1.Version) bool { return !strings.HasPrefix(v.GetTag(), prefix) }), err
}

// Info returns the information that was pushed with the newest version of a tag.
func (c *Client) Info(ctx context.Context, tag string) (map[string]string, error) {
	v, err := c.Meta(ctx, tag)
	return v.GetInfo(), err
}

// Meta describes the newest version of a tag at the captain, which this machine may not have yet.
func (c *Client) Meta(ctx context.Context, tag string) (*psv1.Version, error) {
	res, err := c.captain.GetMeta(ctx, &psv1.GetMetaRequest{Tag: tag})
	return res.GetVersion(), c.noVersion(ctx, tag, err)
}

// Officers returns the captain's officers, that of its own machine first.
func (c *Client) Officers(ctx context.Context) ([]*psv1.OfficerInfo, error) {
	res, err := c.captain.ListOfficers(ctx, &psv1.ListOfficersRequest{})
	return res.GetOfficers(), err
}

// Duplicate copies the newest version of a tag to the next version of another one, without sending
// the parameters through this process.
func (c *Client) Duplicate(ctx context.Context, from, to string) error {
	res, err := c.captain.Duplicate(ctx, &psv1.DuplicateRequest{From: from, To: to})
	if err != nil {
		return c.noVersion(ctx, from, err)
	}
	return c.raise(res.GetVersion())
}

// raise keeps the client from showing an older version of a tag than one.
func (c *Client) raise(version *psv1.Version) error {
	v, err := c.view(version.GetTag())
	if err != nil {
		return err
	}
	v.raise(version.GetId())
	return nil
}

// Delete deletes a tag. Readers keep what they hold. The ids of later pushes continue from its last
// one.
func (c *Client) Delete(ctx context.Context, tag string) error {
	_, err := c.captain.Delete(ctx, &psv1.DeleteRequest{Tag: tag})
	return c.noVersion(ctx, tag, err)
}

// noVersion converts a NotFound error to [ErrNoVersion] if it is about the tag rather than about
// the captain.
func (c *Client) noVersion(ctx context.Context, tag string, err error) error {
	if err == nil || connect.CodeOf(err) != connect.CodeNotFound {
		return err
	}
	if _, asked := c.captain.GetID(ctx, &psv1.GetIDRequest{Tag: tag}); asked != nil {
		return err
	}
	return fmt.Errorf("%w: %w", ErrNoVersion, err)
}

// files is the mapped state of an officer's directory.
type files struct {
	directory string
	nonce     string
	officer   *psv1raylink.Officer // nil if it can't be called

	// mu guards the fields below.
	mu      sync.RWMutex
	closed  bool
	readers map[string]*store.Reader
}

// mapped returns the reader of a tag's mapped files, or nil if calls go to the captain. It never
// blocks on the captain.
func (c *Client) mapped(tag string) (*store.Reader, error) {
	if c.ended.Load() {
		return nil, c.endedError()
	}
	f := c.files.Load()
	if now := int64(time.Since(c.start)); now-c.checked.Load() >= int64(recheckInterval) {
		if c.hasUnseen(f, tag) {
			c.checked.Store(now) // a new version shows that its officer is alive, at no cost
		} else {
			c.recheck(f)
		}
	}
	for f != nil {
		r, err := f.reader(tag)
		if !errors.Is(err, ErrClosed) {
			return r, err
		}
		if f = c.files.Load(); f == nil {
			break
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, ErrClosed
	}
	return nil, nil //nolint:nilnil // nil means: call the captain
}

// hasUnseen reports whether mapped files have a version of a tag that this client has not seen.
func (c *Client) hasUnseen(f *files, tag string) bool {
	if f == nil {
		return false
	}
	r, err := f.reader(tag)
	if err != nil {
		return false
	}
	v, err := c.view(tag)
	if err != nil {
		return false
	}
	id, err := r.ID()
	return err == nil && id > v.floor.Load()
}

// recheck locates the machine's officer in the background, unless the one whose files are mapped is
// alive.
func (c *Client) recheck(f *files) {
	c.checked.Store(int64(time.Since(c.start)))
	if f != nil && f.served() {
		return
	}
	if !c.locating.CompareAndSwap(false, true) {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return
	}
	c.background.Go(func() {
		defer c.locating.Store(false)
		_, _ = c.locate(c.life) // what is mapped stays in use until there is an officer
	})
}

// locate gets the machine's officer from the captain, and maps its files if its nonce is found in
// its directory. If there is to be one that this process may host, it begins to host it.
func (c *Client) locate(ctx context.Context) (*psv1.LocateResponse, error) {
	res, err := c.captain.Locate(ctx, &psv1.LocateRequest{Machine: c.machine})
	if err != nil {
		return nil, fmt.Errorf("locate the machine's officer: %w", err)
	}
	d := res.GetDirectory()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, ErrClosed
	}
	if c.mayHost && res.GetWanted() && c.leave == nil {
		c.leave = processHostings.join(c.captain, c.machine, res.GetConfig())
	}
	before := c.files.Load()
	switch {
	case d == nil && before != nil:
		return res, nil // its officer is about to enlist again, or another to take over
	case !rundir.Proves(d.GetMachine(), d.GetDirectory(), d.GetNonce()):
		c.files.Store(nil)
	case before != nil && before.directory == d.GetDirectory() && before.nonce == d.GetNonce() &&
		before.officer != nil && before.officer.Ref().NID() == res.GetOfficer().GetNid():
		return res, nil
	default:
		f := &files{directory: d.GetDirectory(), nonce: d.GetNonce(), readers: make(map[string]*store.Reader)}
		if officer, err := c.find(res.GetOfficer()); err == nil {
			f.officer = officer
		}
		if before != nil && before.directory == f.directory {
			f.readers = before.give()
		}
		c.files.Store(f)
	}
	return res, before.close()
}

// give returns the readers, for another use of the same directory, and closes the files.
func (f *files) give() map[string]*store.Reader {
	f.mu.Lock()
	defer f.mu.Unlock()
	readers := f.readers
	f.readers, f.closed = nil, true
	return readers
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
		return nil, ErrClosed
	}
	if r, ok := f.readers[tag]; ok {
		return r, nil
	}
	r, err := store.NewReader(f.directory, tag)
	if err != nil {
		return nil, connect.NewError(connect.CodeInvalidArgument, err.Error()).WithCause(err)
	}
	f.readers[tag] = r
	return r, nil
}

// served reports whether the officer is alive.
func (f *files) served() bool {
	return store.Served(f.directory)
}

func (f *files) close() error {
	if f == nil {
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = true
	errs := make([]error, 0, len(f.readers))
	for _, r := range f.readers {
		errs = append(errs, r.Close())
	}
	return errors.Join(errs...)
}
