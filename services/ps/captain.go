package ps

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	psv1 "github.com/raylink/raylink/gen/raylink/ps/v1"
	"github.com/raylink/raylink/gen/raylink/ps/v1/psv1raylink"
	"github.com/raylink/raylink/services/ps/store"
)

// captain is a captain node. Push and Enlist take turns; the other methods are concurrent and only
// use what mu guards.
type captain struct {
	psv1raylink.UnimplementedCaptainNode

	options store.Options
	machine string
	log     *slog.Logger
	// spawn runs a task of the node. If the task returns an error, the node fails.
	spawn func(task func(ctx context.Context) error)
	// find returns the handle of an officer that enlists.
	find func(req *psv1.EnlistRequest) (*psv1raylink.Officer, error)

	// mu guards the fields below. It is never held during a call.
	mu       sync.Mutex
	newest   map[string]*push
	officers map[string]*officerSession
}

// push is a version with its parameters. It is immutable.
type push struct {
	version    *psv1.Version
	parameters []byte
}

func newCaptain(config *psv1.CaptainConfig, machine string, log *slog.Logger, spawn func(func(context.Context) error)) *captain {
	return &captain{
		options: options(config).WithDefaults(), machine: machine, log: log, spawn: spawn,
		newest: make(map[string]*push), officers: make(map[string]*officerSession),
	}
}

// Push makes parameters the newest version of their tag, or fails and changes nothing.
func (c *captain) Push(ctx context.Context, req *psv1.PushRequest) (*psv1.PushResponse, error) {
	p, err := c.store(ctx, req)
	if err != nil {
		return nil, err
	}
	for _, o := range c.accept(p) {
		o.notify()
	}
	return &psv1.PushResponse{Version: p.version}, nil
}

// idTries is how often a push gets a new id because the officer has one that the captain did not
// know of.
const idTries = 3

// store assigns an id to a push and stores it with the officer of the captain's machine.
func (c *captain) store(ctx context.Context, req *psv1.PushRequest) (*push, error) {
	var floor uint64
	for range idTries {
		version, err := c.nextVersion(req, floor)
		if err != nil {
			return nil, err
		}
		p := &push{version: version, parameters: req.GetParameters()}
		if floor, err = c.storeLocally(ctx, p); err != nil {
			return nil, err
		}
		if floor < version.GetId() {
			return p, nil
		}
	}
	return nil, connect.Errorf(connect.CodeAborted, "push %q: the officer already has version %d, of which the captain does not know", req.GetTag(), floor)
}

// nextVersion returns the version that a push will become. Its id is above the floor.
func (c *captain) nextVersion(req *psv1.PushRequest, floor uint64) (*psv1.Version, error) {
	if err := store.CheckTag(req.GetTag()); err != nil {
		return nil, connect.NewError(connect.CodeInvalidArgument, err.Error()).WithCause(err)
	}
	size := uint64(len(req.GetParameters()))
	if size > c.options.MaxBytes {
		return nil, connect.Errorf(connect.CodeResourceExhausted,
			"push %q: %d bytes exceed the limit of %d", req.GetTag(), size, c.options.MaxBytes)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	before, ok := c.newest[req.GetTag()]
	if !ok && len(c.newest) >= c.options.MaxTags {
		return nil, connect.Errorf(connect.CodeResourceExhausted, "push %q: the limit of %d tags is reached", req.GetTag(), len(c.newest))
	}
	last := floor
	if ok {
		last = max(last, before.version.GetId())
	}
	id := req.GetVersion()
	if id == 0 {
		id = last + 1
	}
	if id <= last {
		return nil, connect.Errorf(connect.CodeAborted, "push %q: version %d is too late: the newest one is %d", req.GetTag(), id, last)
	}
	version := &psv1.Version{
		Tag: req.GetTag(), Id: id, Size: size, Info: req.GetInfo(), Pushed: timestamppb.Now(),
		Checksum: store.Checksum(req.GetParameters()),
	}
	if proto.Size(version) > store.MaxDescription {
		return nil, connect.Errorf(connect.CodeInvalidArgument, "push %q: tag and info exceed %d bytes", req.GetTag(), store.MaxDescription)
	}
	return version, nil
}

// storeLocally stores a push with the officer of the captain's own machine. If the officer already
// has this id or a later one, it returns that id, else 0. A push that the officer rejects fails. If
// there is no officer, or it is unavailable, the push continues without it: clients that have
// mapped its files notice.
//
// The officer's call outlives the caller's deadline: a version that was stored without the
// captain's knowledge could be seen, but not pulled.
func (c *captain) storeLocally(ctx context.Context, p *push) (uint64, error) {
	c.mu.Lock()
	local := c.officers[c.machine]
	c.mu.Unlock()
	if local == nil {
		return 0, nil
	}
	ctx = context.WithoutCancel(ctx)
	res, err := local.officer.Store(ctx, &psv1.StoreRequest{Version: p.version, Parameters: p.parameters})
	if err != nil && connect.CodeOf(err) == connect.CodeUnavailable {
		c.log.Warn("the officer of the captain's machine is unavailable", slog.Any("error", err))
		return 0, nil
	}
	if err != nil || res.GetStored() {
		return 0, err
	}
	has, err := local.officer.GetID(ctx, &psv1.GetIDRequest{Tag: p.version.GetTag()})
	return max(has.GetId(), p.version.GetId()), err
}

// accept makes a push the newest version, and returns the sessions to notify.
func (c *captain) accept(p *push) []*officerSession {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.newest[p.version.GetTag()] = p
	var remote []*officerSession
	for machine, o := range c.officers {
		if machine != c.machine {
			remote = append(remote, o)
		}
	}
	return remote
}

// Pull returns the newest parameters of a tag.
func (c *captain) Pull(_ context.Context, req *psv1.PullRequest) (*psv1.PullResponse, error) {
	p := c.newestOf(req.GetTag())
	switch {
	case p == nil:
		return nil, noVersion(req.GetTag())
	case p.version.GetId() == req.GetHave():
		return &psv1.PullResponse{Version: p.version, Unchanged: true}, nil
	default:
		return &psv1.PullResponse{Version: p.version, Parameters: p.parameters}, nil
	}
}

func (c *captain) newestOf(tag string) *push {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.newest[tag]
}

// GetID returns the id of a tag's newest version.
func (c *captain) GetID(_ context.Context, req *psv1.GetIDRequest) (*psv1.GetIDResponse, error) {
	if p := c.newestOf(req.GetTag()); p != nil {
		return &psv1.GetIDResponse{Id: p.version.GetId()}, nil
	}
	return &psv1.GetIDResponse{}, nil
}

// ListTags returns the newest version of each tag.
func (c *captain) ListTags(context.Context, *psv1.ListTagsRequest) (*psv1.ListTagsResponse, error) {
	res := new(psv1.ListTagsResponse)
	for _, p := range c.newestVersions() {
		res.Versions = append(res.Versions, p.version)
	}
	return res, nil
}

// newestVersions returns the newest version of each tag, sorted by tag.
func (c *captain) newestVersions() []*push {
	c.mu.Lock()
	defer c.mu.Unlock()
	pushes := make([]*push, 0, len(c.newest))
	for _, p := range c.newest {
		pushes = append(pushes, p)
	}
	slices.SortFunc(pushes, func(a, b *push) int { return strings.Compare(a.version.GetTag(), b.version.GetTag()) })
	return pushes
}

// Locate returns the officer of a machine.
func (c *captain) Locate(_ context.Context, req *psv1.LocateRequest) (*psv1.LocateResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	o, ok := c.officers[req.GetMachine()]
	if !ok {
		return &psv1.LocateResponse{}, nil
	}
	return &psv1.LocateResponse{Officer: o.request.GetOfficer(), Directory: o.request.GetDirectory()}, nil
}

// Enlist adds an officer. It replaces the previous one of its machine.
func (c *captain) Enlist(ctx context.Context, req *psv1.EnlistRequest) (*psv1.EnlistResponse, error) {
	if req.GetMachine() == "" || req.GetOfficer() == nil || req.GetDirectory() == nil {
		return nil, connect.NewError(connect.CodeInvalidArgument, "enlist officer: machine, officer and directory are required")
	}
	officer, err := c.find(req)
	if err != nil {
		return nil, err
	}
	return &psv1.EnlistResponse{}, c.enlist(ctx, officer, req)
}

// enlistLocal enlists the officer of the captain's own machine.
func (c *captain) enlistLocal(ctx context.Context, officer *psv1raylink.Officer) error {
	directory, err := officer.Directory(ctx, &psv1.DirectoryRequest{})
	if err != nil {
		return fmt.Errorf("get the officer's directory: %w", err)
	}
	tags, err := officer.ListTags(ctx, &psv1.ListTagsRequest{})
	if err != nil {
		return fmt.Errorf("list the officer's tags: %w", err)
	}
	return c.enlist(ctx, officer, &psv1.EnlistRequest{
		Machine: c.machine, Officer: officer.Ref().NodeRef(), Directory: directory, Versions: tags.GetVersions(),
	})
}

func (c *captain) enlist(ctx context.Context, officer *psv1raylink.Officer, req *psv1.EnlistRequest) error {
	if err := c.restore(ctx, officer, req.GetVersions()); err != nil {
		return err
	}
	o := newOfficerSession(officer, req)
	for _, v := range req.GetVersions() {
		o.sent[v.GetTag()] = v.GetId()
	}
	c.mu.Lock()
	before := c.officers[req.GetMachine()]
	c.officers[req.GetMachine()] = o
	c.mu.Unlock()
	if before != nil {
		before.end()
	}
	c.spawn(func(ctx context.Context) error { return o.run(ctx, c) })
	o.notify()
	return nil
}

// removeSession removes an officer whose node has ended, unless another one has replaced it.
func (c *captain) removeSession(o *officerSession) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if machine := o.request.GetMachine(); c.officers[machine] == o {
		delete(c.officers, machine)
	}
}

// restore pulls versions from an officer that are newer than the captain's: after a restart of the
// captain.
func (c *captain) restore(ctx context.Context, officer *psv1raylink.Officer, versions []*psv1.Version) error {
	var errs []error
	for _, v := range versions {
		if p := c.newestOf(v.GetTag()); p != nil && p.version.GetId() >= v.GetId() {
			continue
		}
		res, err := officer.Pull(ctx, &psv1.PullRequest{Tag: v.GetTag()})
		if err != nil {
			errs = append(errs, fmt.Errorf("restore %q from the officer: %w", v.GetTag(), err))
			continue
		}
		if got := res.GetVersion(); store.Checksum(res.GetParameters()) != got.GetChecksum() || got.GetTag() != v.GetTag() {
			errs = append(errs, fmt.Errorf("restore %q from the officer: wrong checksum or tag", v.GetTag()))
			continue
		}
		c.accept(&push{version: proto.CloneOf(res.GetVersion()), parameters: res.GetParameters()})
	}
	return errors.Join(errs...)
}
