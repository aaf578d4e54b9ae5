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

// captain takes pushes. Push and Enlist run in turns; all others read what mu guards.
type captain struct {
	psv1raylink.UnimplementedCaptainNode

	options store.Options
	machine string
	log     *slog.Logger
	// spawn runs a task of the node; its error would be the node's failure.
	spawn func(task func(ctx context.Context) error)
	// find makes the handle of an officer who enlists.
	find func(req *psv1.EnlistRequest) (*psv1raylink.Officer, error)

	// mu guards the fields below, and is held only for short.
	mu       sync.Mutex
	newest   map[string]*push
	officers map[string]*posting
}

// push is a version with its parameters. It is never changed.
type push struct {
	version    *psv1.Version
	parameters []byte
}

func newCaptain(config *psv1.CaptainConfig, machine string, log *slog.Logger, spawn func(func(context.Context) error)) *captain {
	return &captain{
		options: options(config).Filled(), machine: machine, log: log, spawn: spawn,
		newest: make(map[string]*push), officers: make(map[string]*posting),
	}
}

// Push makes parameters the newest of their tag, or refuses them and changes nothing.
func (c *captain) Push(ctx context.Context, req *psv1.PushRequest) (*psv1.PushResponse, error) {
	p, err := c.stored(ctx, req)
	if err != nil {
		return nil, err
	}
	for _, posting := range c.accept(p) {
		posting.tell()
	}
	return &psv1.PushResponse{Version: p.version}, nil
}

// idTries is how often a push gets another id because the officer had one that the captain did not know of.
const idTries = 3

// stored is a push that the officer of the captain's machine has.
func (c *captain) stored(ctx context.Context, req *psv1.PushRequest) (*push, error) {
	var floor uint64
	for range idTries {
		version, err := c.next(req, floor)
		if err != nil {
			return nil, err
		}
		p := &push{version: version, parameters: req.GetParameters()}
		if floor, err = c.storeAtHome(ctx, p); err != nil {
			return nil, err
		}
		if floor < version.GetId() {
			return p, nil
		}
	}
	return nil, connect.Errorf(connect.CodeAborted, "pushing %q: the officer has version %d, whoever pushed that", req.GetTag(), floor)
}

// next is the version that a push becomes, if it is taken. Its id is above the floor.
func (c *captain) next(req *psv1.PushRequest, floor uint64) (*psv1.Version, error) {
	if err := store.CheckTag(req.GetTag()); err != nil {
		return nil, connect.NewError(connect.CodeInvalidArgument, err.Error()).WithCause(err)
	}
	size := uint64(len(req.GetParameters()))
	if size > c.options.MaxBytes {
		return nil, connect.Errorf(connect.CodeResourceExhausted,
			"pushing %q: %d bytes, and at most %d are taken", req.GetTag(), size, c.options.MaxBytes)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	before, ok := c.newest[req.GetTag()]
	if !ok && len(c.newest) >= c.options.MaxTags {
		return nil, connect.Errorf(connect.CodeResourceExhausted, "pushing %q: there are %d tags already", req.GetTag(), len(c.newest))
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
		return nil, connect.Errorf(connect.CodeAborted, "pushing %q: version %d comes too late, the newest is %d", req.GetTag(), id, last)
	}
	version := &psv1.Version{
		Tag: req.GetTag(), Id: id, Size: size, Info: req.GetInfo(), Pushed: timestamppb.Now(),
		Checksum: store.Checksum(req.GetParameters()),
	}
	if proto.Size(version) > store.MaxDescription {
		return nil, connect.Errorf(connect.CodeInvalidArgument, "pushing %q: the info has more than %d bytes", req.GetTag(), store.MaxDescription)
	}
	return version, nil
}

// storeAtHome gives a push to the officer of the captain's own machine, and returns the id that he had already if that is not
// below. What he refuses is refused. If there is none, or he is gone, those who have his files mapped know it.
//
// The caller's deadline does not end it: what the officer has stored without the captain's knowing could be seen, and not pulled.
func (c *captain) storeAtHome(ctx context.Context, p *push) (uint64, error) {
	c.mu.Lock()
	home := c.officers[c.machine]
	c.mu.Unlock()
	if home == nil {
		return 0, nil
	}
	ctx = context.WithoutCancel(ctx)
	res, err := home.officer.Store(ctx, &psv1.StoreRequest{Version: p.version, Parameters: p.parameters})
	if err != nil && connect.CodeOf(err) == connect.CodeUnavailable {
		c.log.Warn("the officer of the captain's machine does not answer", slog.Any("error", err))
		return 0, nil
	}
	if err != nil || res.GetStored() {
		return 0, err
	}
	has, err := home.officer.GetID(ctx, &psv1.GetIDRequest{Tag: p.version.GetTag()})
	return max(has.GetId(), p.version.GetId()), err
}

// accept makes a push the newest, and says who is to be told.
func (c *captain) accept(p *push) []*posting {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.newest[p.version.GetTag()] = p
	var away []*posting
	for machine, o := range c.officers {
		if machine != c.machine {
			away = append(away, o)
		}
	}
	return away
}

// Pull gives the newest parameters of a tag.
func (c *captain) Pull(_ context.Context, req *psv1.PullRequest) (*psv1.PullResponse, error) {
	p := c.of(req.GetTag())
	switch {
	case p == nil:
		return nil, noVersion(req.GetTag())
	case p.version.GetId() == req.GetHave():
		return &psv1.PullResponse{Version: p.version, Unchanged: true}, nil
	default:
		return &psv1.PullResponse{Version: p.version, Parameters: p.parameters}, nil
	}
}

func (c *captain) of(tag string) *push {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.newest[tag]
}

// GetID says what is newest.
func (c *captain) GetID(_ context.Context, req *psv1.GetIDRequest) (*psv1.GetIDResponse, error) {
	if p := c.of(req.GetTag()); p != nil {
		return &psv1.GetIDResponse{Id: p.version.GetId()}, nil
	}
	return &psv1.GetIDResponse{}, nil
}

// ListTags lists what there is.
func (c *captain) ListTags(context.Context, *psv1.ListTagsRequest) (*psv1.ListTagsResponse, error) {
	res := new(psv1.ListTagsResponse)
	for _, p := range c.all() {
		res.Versions = append(res.Versions, p.version)
	}
	return res, nil
}

// all are the newest versions of all tags, sorted by tag.
func (c *captain) all() []*push {
	c.mu.Lock()
	defer c.mu.Unlock()
	pushes := make([]*push, 0, len(c.newest))
	for _, p := range c.newest {
		pushes = append(pushes, p)
	}
	slices.SortFunc(pushes, func(a, b *push) int { return strings.Compare(a.version.GetTag(), b.version.GetTag()) })
	return pushes
}

// Locate says which officer serves a machine.
func (c *captain) Locate(_ context.Context, req *psv1.LocateRequest) (*psv1.LocateResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	o, ok := c.officers[req.GetMachine()]
	if !ok {
		return &psv1.LocateResponse{}, nil
	}
	return &psv1.LocateResponse{Officer: o.request.GetOfficer(), Directory: o.request.GetDirectory()}, nil
}

// Enlist makes an officer one of the captain's.
func (c *captain) Enlist(ctx context.Context, req *psv1.EnlistRequest) (*psv1.EnlistResponse, error) {
	if req.GetMachine() == "" || req.GetOfficer() == nil || req.GetDirectory() == nil {
		return nil, connect.NewError(connect.CodeInvalidArgument, "an officer enlists with its machine, its reference and its directory")
	}
	officer, err := c.find(req)
	if err != nil {
		return nil, err
	}
	return &psv1.EnlistResponse{}, c.enlist(ctx, officer, req)
}

// enlistHome enlists the officer of the captain's own machine.
func (c *captain) enlistHome(ctx context.Context, officer *psv1raylink.Officer) error {
	directory, err := officer.Directory(ctx, &psv1.DirectoryRequest{})
	if err != nil {
		return fmt.Errorf("ask the officer for its directory: %w", err)
	}
	tags, err := officer.ListTags(ctx, &psv1.ListTagsRequest{})
	if err != nil {
		return fmt.Errorf("ask the officer for what it has: %w", err)
	}
	return c.enlist(ctx, officer, &psv1.EnlistRequest{
		Machine: c.machine, Officer: officer.Ref().NodeRef(), Directory: directory, Versions: tags.GetVersions(),
	})
}

func (c *captain) enlist(ctx context.Context, officer *psv1raylink.Officer, req *psv1.EnlistRequest) error {
	if err := c.learn(ctx, officer, req.GetVersions()); err != nil {
		return err
	}
	o := newPosting(officer, req)
	for _, v := range req.GetVersions() {
		o.sent[v.GetTag()] = v.GetId()
	}
	c.mu.Lock()
	before := c.officers[req.GetMachine()]
	c.officers[req.GetMachine()] = o
	c.mu.Unlock()
	if before != nil {
		before.dismiss()
	}
	c.spawn(func(ctx context.Context) error { return o.serve(ctx, c) })
	o.tell()
	return nil
}

// forget strikes off an officer whose node has ended, if no other has come in its place.
func (c *captain) forget(o *posting) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if machine := o.request.GetMachine(); c.officers[machine] == o {
		delete(c.officers, machine)
	}
}

// learn takes from an officer what it has and the captain does not: after a restart of his.
func (c *captain) learn(ctx context.Context, officer *psv1raylink.Officer, versions []*psv1.Version) error {
	var errs []error
	for _, v := range versions {
		if p := c.of(v.GetTag()); p != nil && p.version.GetId() >= v.GetId() {
			continue
		}
		res, err := officer.Pull(ctx, &psv1.PullRequest{Tag: v.GetTag()})
		if err != nil {
			errs = append(errs, fmt.Errorf("learn %q from the officer: %w", v.GetTag(), err))
			continue
		}
		if got := res.GetVersion(); store.Checksum(res.GetParameters()) != got.GetChecksum() || got.GetTag() != v.GetTag() {
			errs = append(errs, fmt.Errorf("learn %q from the officer: what came is not what was pushed", v.GetTag()))
			continue
		}
		c.accept(&push{version: proto.CloneOf(res.GetVersion()), parameters: res.GetParameters()})
	}
	return errors.Join(errs...)
}
