package ps

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/types/known/timestamppb"

	nodev1 "github.com/raylink/raylink/gen/raylink/node/v1"
	psv1 "github.com/raylink/raylink/gen/raylink/ps/v1"
	"github.com/raylink/raylink/gen/raylink/ps/v1/psv1raylink"
	"github.com/raylink/raylink/runtime"
)

const (
	// tick is how often captain and officer show each other that they respond.
	tick = 250 * time.Millisecond
	// silence is how long an officer may show nothing before it is no other officer's source.
	silence = 4 * tick
)

// session is the captain's session with the officer of another machine.
type session struct {
	hello *psv1.Hello
	// wake has an entry if there are states to send.
	wake chan struct{}
	// replaced is closed when another officer has replaced this one.
	replaced chan struct{}
	once     sync.Once

	// The captain's mu guards the fields below.

	// dirty are the tags whose state is to be sent.
	dirty map[string]struct{}
	// has are the ids of the officer's newest versions.
	has map[string]uint64
	// seen is when the last message arrived.
	seen time.Time
}

// announce has the session send a tag's state. The caller holds the captain's mu.
func (s *session) announce(tag string) {
	s.dirty[tag] = struct{}{}
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

func (s *session) end() { s.once.Do(func() { close(s.replaced) }) }

// Enlist adds an officer for as long as the stream lasts. It replaces the previous one of its
// machine.
func (c *captain) Enlist(ctx context.Context, stream psv1raylink.CaptainEnlistServerStream) error {
	first, err := stream.Receive()
	if err != nil {
		return err
	}
	hello := first.GetHello()
	if hello.GetMachine() == "" || hello.GetOfficer() == nil || hello.GetDirectory() == nil {
		return connect.NewError(connect.CodeInvalidArgument, "enlist officer: machine, officer and directory are required")
	}
	if hello.GetMachine() == c.machine {
		return connect.Errorf(connect.CodeAlreadyExists, "enlist officer: machine %s is the captain's own, and has its officer", c.machine)
	}
	if err := c.restore(ctx, hello); err != nil {
		return err
	}
	s, err := c.addSession(hello)
	if err != nil {
		return err
	}
	defer c.removeSession(s)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	received := make(chan error, 1)
	go func() { received <- c.receive(s, stream) }()
	return c.send(ctx, s, stream, received)
}

// addSession adds an officer's session. Every tag's state is sent first.
func (c *captain) addSession(hello *psv1.Hello) (*session, error) {
	s := &session{
		hello: hello, wake: make(chan struct{}, 1), replaced: make(chan struct{}),
		dirty: make(map[string]struct{}), has: make(map[string]uint64), seen: time.Now(),
	}
	for _, v := range hello.GetVersions() {
		s.has[v.GetTag()] = v.GetId()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	i := slices.IndexFunc(c.sessions, func(x *session) bool { return x.hello.GetMachine() == hello.GetMachine() })
	switch {
	case i >= 0:
		c.sessions[i].end()
		c.sessions[i] = s
	case len(c.sessions) >= c.maxOfficers:
		return nil, connect.Errorf(connect.CodeResourceExhausted,
			"enlist the officer of machine %s: the captain has officers on %d other machines, the most that it was configured for (max_officers)",
			hello.GetMachine(), len(c.sessions))
	default:
		c.sessions = append(c.sessions, s)
	}
	for tag := range c.tags {
		s.announce(tag)
	}
	c.log.Info("an officer has enlisted", slog.String("machine", hello.GetMachine()))
	return s, nil
}

func (c *captain) removeSession(s *session) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if i := slices.Index(c.sessions, s); i >= 0 {
		c.sessions = slices.Delete(c.sessions, i, i+1)
		c.log.Info("an officer has left", slog.String("machine", s.hello.GetMachine()))
	}
	c.broadcast()
}

// broadcast wakes the waits of pushes. The caller holds mu.
func (c *captain) broadcast() {
	close(c.changed)
	c.changed = make(chan struct{})
}

// receive records what the officer has, until its stream ends.
func (c *captain) receive(s *session, stream psv1raylink.CaptainEnlistServerStream) error {
	for {
		req, err := stream.Receive()
		if err != nil {
			return err
		}
		c.mu.Lock()
		s.seen = time.Now()
		if v := req.GetStored(); v != nil {
			s.has[v.GetTag()] = max(s.has[v.GetTag()], v.GetId())
			c.broadcast()
		}
		c.mu.Unlock()
	}
}

// send sends states and ticks, until the stream ends.
func (c *captain) send(ctx context.Context, s *session, stream psv1raylink.CaptainEnlistServerStream, received <-chan error) error {
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	stopping := stoppingOf(ctx)
	for {
		for _, state := range c.takeStates(s) {
			if err := stream.Send(&psv1.EnlistResponse{State: state}); err != nil {
				return err
			}
		}
		select {
		case err := <-received:
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		case <-s.replaced:
			return connect.NewError(connect.CodeAborted, "another officer of the machine has enlisted")
		case <-stopping:
			return nil
		case <-s.wake:
		case <-ticker.C:
			if err := stream.Send(&psv1.EnlistResponse{}); err != nil {
				return err
			}
		}
	}
}

// stoppingOf returns the channel that is closed when the node that serves a call begins to stop.
func stoppingOf(ctx context.Context) <-chan struct{} {
	if n := runtime.NodeFrom(ctx); n != nil {
		return n.Stopping()
	}
	return nil
}

// takeStates returns the states to send.
func (c *captain) takeStates(s *session) []*psv1.TagState {
	c.mu.Lock()
	defer c.mu.Unlock()
	states := make([]*psv1.TagState, 0, len(s.dirty))
	for tag := range s.dirty {
		states = append(states, c.state(s, tag))
	}
	clear(s.dirty)
	return states
}

const (
	// fanOut is how many officers of the tree fetch from each.
	fanOut = 4
	// maxSources bounds the sources in a state, home not counted.
	maxSources = 8
)

// sources returns the officers that an officer fetches from, nearest first; home, which has
// everything, is not among them. The caller holds mu.
//
// Officers only fetch from those before them, so that no cycle arises. One that has been silent for
// a second is skipped.
func (c *captain) sources(s *session, size uint64) []*nodev1.NodeRef {
	alive := make([]*session, 0, len(c.sessions))
	at := -1
	for _, x := range c.sessions {
		if x == s {
			at = len(alive) + 1 // home has position 0
		}
		if x == s || time.Since(x.seen) < silence {
			alive = append(alive, x)
		}
	}
	var refs []*nodev1.NodeRef
	for at > 0 && len(refs) < maxSources {
		if size > c.chainAbove {
			at--
		} else {
			at = (at - 1) / fanOut
		}
		if at > 0 {
			refs = append(refs, alive[at-1].hello.GetOfficer())
		}
	}
	return refs
}

// restore fetches versions that an officer has and that are newer than the captain's: the files of
// the captain's machine were lost.
func (c *captain) restore(ctx context.Context, hello *psv1.Hello) error {
	var errs []error
	for _, v := range hello.GetVersions() {
		if err := c.restoreVersion(ctx, v, hello.GetOfficer()); err != nil {
			errs = append(errs, fmt.Errorf("restore version %d of %q from the officer of machine %s: %w", v.GetId(), v.GetTag(), hello.GetMachine(), err))
		}
	}
	for tag, last := range hello.GetDeleted() {
		if err := c.restoreDeleted(tag, last); err != nil {
			errs = append(errs, fmt.Errorf("restore the last id %d of %q from the officer of machine %s: %w", last, tag, hello.GetMachine(), err))
		}
	}
	return errors.Join(errs...)
}

// restoreDeleted keeps the last id of a tag that was deleted, so that no id is given again.
func (c *captain) restoreDeleted(tag string, last uint64) error {
	c.committing.Lock()
	defer c.committing.Unlock()
	c.mu.Lock()
	t := c.record(tag)
	news := t.newest == nil && last > t.last
	if news {
		t.last = last
	}
	c.mu.Unlock()
	if !news {
		return nil
	}
	return withCode(c.home.store.Delete(tag, last))
}

func (c *captain) restoreVersion(ctx context.Context, v *psv1.Version, from *nodev1.NodeRef) error {
	c.mu.Lock()
	known := c.tags[v.GetTag()]
	c.mu.Unlock()
	if known != nil && known.last >= v.GetId() {
		return nil
	}
	defer c.setComing(v, false)
	d, err := c.fetchHome(ctx, v, from)
	if err != nil {
		return err
	}
	c.committing.Lock()
	defer c.committing.Unlock()
	published, err := c.home.store.Publish(d, v)
	if err != nil {
		return errors.Join(withCode(err), d.Discard())
	}
	if published {
		c.accept(v)
	}
	return nil
}

// Locate returns the officer of a machine.
func (c *captain) Locate(_ context.Context, req *psv1.LocateRequest) (*psv1.LocateResponse, error) {
	res := &psv1.LocateResponse{Home: c.machine, Config: c.home.config}
	if req.GetMachine() == c.machine {
		res.Officer, res.Directory = c.homeRef, c.home.directory()
		return res, nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if m := c.making[req.GetMachine()]; m != nil && m.active {
		res.Coming = true
	} else {
		res.Wanted = c.hasRoom()
	}
	for _, s := range c.sessions {
		if s.hello.GetMachine() == req.GetMachine() {
			res.Officer, res.Directory = s.hello.GetOfficer(), s.hello.GetDirectory()
			res.Wanted = !res.GetComing()
		}
	}
	return res, nil
}

// ListOfficers returns the officers.
func (c *captain) ListOfficers(context.Context, *psv1.ListOfficersRequest) (*psv1.ListOfficersResponse, error) {
	versions := make(map[string]uint64)
	for _, v := range c.home.store.Versions() {
		versions[v.GetTag()] = v.GetId()
	}
	home := &psv1.OfficerInfo{Machine: c.machine, Officer: c.homeRef, Home: true, Versions: versions, Seen: timestamppb.Now()}
	res := &psv1.ListOfficersResponse{Officers: []*psv1.OfficerInfo{home}}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range c.sessions {
		info := &psv1.OfficerInfo{
			Machine: s.hello.GetMachine(), Officer: s.hello.GetOfficer(), Seen: timestamppb.New(s.seen), Versions: make(map[string]uint64),
		}
		for tag, id := range versions {
			if has := s.has[tag]; has > 0 {
				info.Versions[tag] = has
				id -= min(id, has)
			}
			info.Lag += id
		}
		res.Officers = append(res.Officers, info)
	}
	slices.SortFunc(res.GetOfficers()[1:], func(a, b *psv1.OfficerInfo) int { return strings.Compare(a.GetMachine(), b.GetMachine()) })
	return res, nil
}
