package ps

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connectproto"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	nodev1 "github.com/raylink/raylink/gen/raylink/node/v1"
	psv1 "github.com/raylink/raylink/gen/raylink/ps/v1"
	"github.com/raylink/raylink/gen/raylink/ps/v1/psv1raylink"
	"github.com/raylink/raylink/services/ps/store"
)

// captain is a captain node. All of its methods are concurrent.
//
// It holds no parameters: the officer of its machine, home, does. A push is a content that home has
// completely, and that commit gives the next id of its tag. Then the officers get the tag's new
// state, and fetch the content from each other.
type captain struct {
	psv1raylink.UnimplementedCaptainNode

	home    *officer
	machine string
	log     *slog.Logger
	// homeRef refers to home's node.
	homeRef     *nodev1.NodeRef
	maxOfficers int
	// chainAbove is the size up to which parameters spread through a tree: its depth counts, since
	// a hop costs more than the bytes. Larger ones spread through a chain, in which each machine
	// sends everything once, however many there are. docs/parameters.md has the measurement.
	chainAbove uint64

	// commitsFrom is when pushes begin to get ids. A captain whose files were lost does not know
	// the ids given before: its officers do, and enlist by then.
	commitsFrom time.Time

	// committing is held while a push gets its id and is published at home, so that versions are
	// published in the order of their ids.
	committing sync.Mutex

	// mu guards the fields below. It is never held during a call or I/O.
	mu   sync.Mutex
	tags map[string]*tagRecord
	// sessions are those of the officers on other machines, in the order in which they enlisted.
	sessions []*session
	// making are the other machines for which the captain has created officers or is creating them.
	making map[string]*making
	// changed is closed, and replaced, when an officer has stored a version or has left, or a
	// machine has.
	changed chan struct{}
}

// tagRecord is what the captain knows of a tag.
type tagRecord struct {
	// newest is nil if nothing was pushed, or the tag was deleted.
	newest *psv1.Version
	// last is the last id that was assigned.
	last uint64
	// coming are the contents that are being uploaded, by content.
	coming map[string]*psv1.Version
}

const (
	defaultMaxOfficers = 1024
	defaultChainAbove  = store.ChunkSize
	// maxOwnID bounds a pusher's own version number.
	maxOwnID = math.MaxInt64
)

// enlistGrace is how long a captain without files waits for officers before it gives ids. They
// enlist within two seconds of its start.
const enlistGrace = 3 * time.Second

func newCaptain(config *psv1.CaptainConfig, machine string, home *officer, log *slog.Logger) *captain {
	c := &captain{
		home: home, machine: machine, log: log, maxOfficers: int(config.GetMaxOfficers()), chainAbove: config.GetChainAbove(),
		tags: make(map[string]*tagRecord), making: make(map[string]*making), changed: make(chan struct{}),
	}
	if c.maxOfficers == 0 {
		c.maxOfficers = defaultMaxOfficers
	}
	if c.chainAbove == 0 {
		c.chainAbove = defaultChainAbove
	}
	for _, v := range home.store.Versions() {
		c.tags[v.GetTag()] = &tagRecord{newest: v, last: v.GetId()}
	}
	for tag, last := range home.store.Floors() {
		c.tags[tag] = &tagRecord{last: last}
	}
	return c
}

// confirmHome shows readers of home's files that the captain is alive.
func (c *captain) confirmHome(ctx context.Context) error {
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	for {
		c.home.store.Confirm()
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}

// Push makes parameters the newest version of their tag, or fails and changes nothing.
func (c *captain) Push(ctx context.Context, req *psv1.PushRequest) (*psv1.PushResponse, error) {
	if done := c.pushedBefore(req); done != nil {
		return c.afterCommit(ctx, done, req.GetWaitFor())
	}
	lent := req.GetLent()
	if lent == nil {
		return c.pushInline(ctx, req)
	}
	d := c.home.store.Draft(lent.GetContent())
	if lent.GetMachine() != c.machine {
		o, err := c.officerOf(lent.GetMachine())
		if err != nil {
			return nil, err
		}
		v := draftOf(req, lent.GetSize(), lent.GetContent())
		defer c.setComing(v, false)
		if d, err = c.fetchHome(ctx, v, o); err != nil {
			return nil, err
		}
	} else if d != nil {
		// The pusher's message to the officer may arrive later than this one.
		if err := d.Reclaim(lent.GetChecksum()); err != nil {
			return nil, withCode(err)
		}
	}
	if d == nil || !d.Complete() {
		return nil, connect.Errorf(connect.CodeUnavailable, "push %q: the officer of machine %s no longer has the parameters: push again",
			req.GetTag(), lent.GetMachine())
	}
	if sum, _ := d.Checksum(); sum != lent.GetChecksum() {
		return nil, errors.Join(connect.Errorf(connect.CodeDataLoss,
			"push %q: the parameters have checksum %08x instead of %08x", req.GetTag(), sum, lent.GetChecksum()), d.Discard())
	}
	return c.commit(ctx, d, req)
}

// pushInline is a push with the parameters in its message.
func (c *captain) pushInline(ctx context.Context, req *psv1.PushRequest) (*psv1.PushResponse, error) {
	content := req.GetContent()
	if content == "" {
		content = newToken()
	}
	data := req.GetParameters()
	d, err := c.reserve(draftOf(req, uint64(len(data)), content), req.GetVersion())
	if err != nil {
		return nil, err
	}
	for i := range d.Chunks() {
		part := data[i*store.ChunkSize : min(len(data), (i+1)*store.ChunkSize)]
		if err := d.WriteChunk(i, part, store.Checksum(part)); err != nil {
			return nil, withCode(errors.Join(err, d.Discard()))
		}
	}
	return c.commit(ctx, d, req)
}

// pushedBefore returns the version that a push has become whose response was lost.
func (c *captain) pushedBefore(req *psv1.PushRequest) *psv1.Version {
	content := req.GetContent()
	if lent := req.GetLent(); lent != nil {
		content = lent.GetContent()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if v := c.tags[req.GetTag()].get(); content != "" && v.GetContent() == content {
		return v
	}
	return nil
}

func (t *tagRecord) get() *psv1.Version {
	if t == nil {
		return nil
	}
	return t.newest
}

// draftOf describes parameters that have no id yet.
func draftOf(req *psv1.PushRequest, size uint64, content string) *psv1.Version {
	return &psv1.Version{Tag: req.GetTag(), Size: size, Info: req.GetInfo(), Content: content}
}

// reserve reserves room for parameters at home. A push whose own version number is late fails
// before its parameters are sent.
func (c *captain) reserve(v *psv1.Version, id uint64) (*store.Draft, error) {
	if err := store.CheckTag(v.GetTag()); err != nil {
		return nil, connect.NewError(connect.CodeInvalidArgument, err.Error()).WithCause(err)
	}
	c.mu.Lock()
	err := c.checkID(v.GetTag(), id)
	c.mu.Unlock()
	if err != nil {
		return nil, err
	}
	d, err := c.home.store.Reserve(v, v.GetContent())
	if err != nil {
		return nil, withCode(err)
	}
	return d, nil
}

// checkID checks a pusher's own version number; 0 is always valid. The caller holds mu.
func (c *captain) checkID(tag string, id uint64) error {
	if id > maxOwnID {
		return connect.Errorf(connect.CodeInvalidArgument, "push %q: version %d exceeds %d: later pushes need ids too", tag, id, uint64(maxOwnID))
	}
	if t := c.tags[tag]; id != 0 && t != nil && id <= t.last {
		return connect.Errorf(connect.CodeAborted, "push %q: version %d is too late: the newest one is %d", tag, id, t.last)
	}
	return nil
}

// commit makes a complete draft the newest version of its tag, and waits for officers to have it if
// the push asks for it.
func (c *captain) commit(ctx context.Context, d *store.Draft, req *psv1.PushRequest) (*psv1.PushResponse, error) {
	if wait := time.Until(c.commitsFrom); wait > 0 {
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return nil, errors.Join(d.Discard(),
				fmt.Errorf("push %q: the captain has found no files, and waits for officers that know earlier ids: %w", req.GetTag(), ctx.Err()))
		}
	}
	v, err := c.publish(d, req)
	if err != nil {
		return nil, errors.Join(withCode(err), d.Discard())
	}
	return c.afterCommit(ctx, v, req.GetWaitFor())
}

func (c *captain) publish(d *store.Draft, req *psv1.PushRequest) (*psv1.Version, error) {
	c.committing.Lock()
	defer c.committing.Unlock()
	sum, complete := d.Checksum()
	if !complete {
		return nil, connect.Errorf(connect.CodeInternal, "push %q: the parameters are incomplete", req.GetTag())
	}
	c.mu.Lock()
	t := c.tags[req.GetTag()]
	id := req.GetVersion()
	if err := c.checkID(req.GetTag(), id); err != nil {
		c.mu.Unlock()
		return nil, err
	}
	if id == 0 {
		id = 1
		if t != nil {
			id = t.last + 1
		}
	}
	c.mu.Unlock()
	v := draftOf(req, d.Size(), d.Content())
	v.Id, v.Checksum, v.Pushed = id, sum, timestamppb.Now()
	published, err := c.home.store.Publish(d, v)
	if err != nil {
		return nil, err
	}
	if !published {
		return nil, connect.Errorf(connect.CodeAborted, "push %q: version %d is too late: the store has %d", req.GetTag(), id, c.home.store.Last(req.GetTag()))
	}
	c.accept(v)
	return v, nil
}

// accept makes a version that home has published the newest of its tag, and announces it.
func (c *captain) accept(v *psv1.Version) {
	c.mu.Lock()
	defer c.mu.Unlock()
	t := c.record(v.GetTag())
	t.newest, t.last = v, v.GetId()
	delete(t.coming, v.GetContent())
	c.announce(v.GetTag())
	c.home.notify()
}

// record returns a tag's record, which it creates if necessary. The caller holds mu.
func (c *captain) record(tag string) *tagRecord {
	t, ok := c.tags[tag]
	if !ok {
		t = &tagRecord{}
		c.tags[tag] = t
	}
	return t
}

// announce has the sessions send a tag's state. The caller holds mu.
func (c *captain) announce(tag string) {
	for _, s := range c.sessions {
		s.announce(tag)
	}
}

// afterCommit waits for officers to have a version.
func (c *captain) afterCommit(ctx context.Context, v *psv1.Version, level psv1.WaitFor) (*psv1.PushResponse, error) {
	if err := c.waitFor(ctx, v, level); err != nil {
		return nil, err
	}
	return &psv1.PushResponse{Version: v}, nil
}

func (c *captain) waitFor(ctx context.Context, v *psv1.Version, level psv1.WaitFor) error {
	if level != psv1.WaitFor_WAIT_FOR_QUORUM && level != psv1.WaitFor_WAIT_FOR_ALL {
		return nil
	}
	// The response has to reach the caller before its own deadline.
	if deadline, ok := ctx.Deadline(); ok {
		var cancel context.CancelFunc
		left := time.Until(deadline)
		ctx, cancel = context.WithDeadline(ctx, deadline.Add(-min(left/3, responseMargin)))
		defer cancel()
	}
	for {
		c.mu.Lock()
		lacking, all := c.lacking(v), len(c.sessions)+1
		changed := c.changed
		c.mu.Unlock()
		has := all - len(lacking)
		if len(lacking) == 0 || level == psv1.WaitFor_WAIT_FOR_QUORUM && has > all/2 {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			err := connect.Errorf(connect.CodeDeadlineExceeded,
				"push %q: version %d was pushed, but when the wait for %s of %d machines ended, %d lacked it: %s",
				v.GetTag(), v.GetId(), levelName(level), all, len(lacking), strings.Join(lacking, ", ")).WithCause(ctx.Err())
			detail, derr := connectproto.NewErrorDetail(&psv1.Lacking{Version: v, WaitFor: level, Machines: lacking})
			if derr != nil {
				return errors.Join(err, derr)
			}
			return err.WithDetail(detail)
		}
	}
}

// responseMargin bounds how long before the caller's deadline a wait ends.
const responseMargin = 250 * time.Millisecond

func levelName(level psv1.WaitFor) string {
	if level == psv1.WaitFor_WAIT_FOR_QUORUM {
		return "more than half"
	}
	return "all"
}

// lacking returns the machines whose officers lack a version. The caller holds mu.
func (c *captain) lacking(v *psv1.Version) []string {
	var machines []string
	for _, s := range c.sessions {
		if s.has[v.GetTag()] < v.GetId() {
			machines = append(machines, s.hello.GetMachine())
		}
	}
	return machines
}

// officerOf returns the officer of another machine.
func (c *captain) officerOf(machine string) (*nodev1.NodeRef, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range c.sessions {
		if s.hello.GetMachine() == machine {
			return s.hello.GetOfficer(), nil
		}
	}
	return nil, connect.Errorf(connect.CodeUnavailable, "the captain has no officer on machine %q at present", machine)
}

// fetchHome fetches parameters from an officer. They are coming until the caller ends that by
// setComing, which it does once they are a version: otherwise the officers would give up fetching
// them in between.
func (c *captain) fetchHome(ctx context.Context, v *psv1.Version, from *nodev1.NodeRef) (*store.Draft, error) {
	d, err := c.reserve(v, 0)
	if err != nil {
		return nil, err
	}
	c.setComing(v, true)
	if err := c.home.fill(ctx, d, func() []*nodev1.NodeRef { return []*nodev1.NodeRef{from} }); err != nil {
		return nil, errors.Join(err, d.Discard())
	}
	return d, nil
}

// setComing adds or removes a content that is being uploaded. Small ones are not worth a message.
func (c *captain) setComing(v *psv1.Version, on bool) {
	if v.GetSize() <= store.ChunkSize {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	t := c.record(v.GetTag())
	if _, there := t.coming[v.GetContent()]; there == on {
		return
	}
	if on {
		if t.coming == nil {
			t.coming = make(map[string]*psv1.Version)
		}
		t.coming[v.GetContent()] = v
	} else {
		delete(t.coming, v.GetContent())
	}
	c.announce(v.GetTag())
}

// Upload is a push in chunks.
func (c *captain) Upload(ctx context.Context, stream psv1raylink.CaptainUploadServerStream) (*psv1.PushResponse, error) {
	first, err := stream.Receive()
	if err != nil {
		return nil, err
	}
	begin := first.GetBegin()
	if begin == nil {
		return nil, connect.NewError(connect.CodeInvalidArgument, "upload: the first message must be the beginning")
	}
	if done := c.pushedBefore(begin.GetPush()); done != nil {
		return c.afterCommit(ctx, done, begin.GetPush().GetWaitFor())
	}
	content := begin.GetPush().GetContent()
	if content == "" {
		content = newToken()
	}
	v := draftOf(begin.GetPush(), begin.GetSize(), content)
	d, err := c.reserve(v, begin.GetPush().GetVersion())
	if err != nil {
		return nil, err
	}
	c.setComing(v, true)
	defer c.setComing(v, false)
	if err := receiveChunks(d, stream); err != nil {
		return nil, errors.Join(err, d.Discard())
	}
	return c.commit(ctx, d, begin.GetPush())
}

func receiveChunks(d *store.Draft, stream psv1raylink.CaptainUploadServerStream) error {
	for {
		req, err := stream.Receive()
		if errors.Is(err, io.EOF) {
			if !d.Complete() {
				return connect.Errorf(connect.CodeInvalidArgument, "push %q: %d of %d chunks were sent", d.Tag(), d.Written(), d.Chunks())
			}
			return nil
		}
		if err != nil {
			return err
		}
		if err := d.WriteChunk(int(req.GetChunk().GetIndex()), req.GetChunk().GetData(), req.GetChunk().GetChecksum()); err != nil {
			return withCode(err)
		}
	}
}

// Pull returns the newest parameters of a tag.
func (c *captain) Pull(ctx context.Context, req *psv1.PullRequest) (*psv1.PullResponse, error) {
	return c.home.Pull(ctx, req)
}

// Fetch sends the newest parameters of a tag in chunks.
func (c *captain) Fetch(ctx context.Context, req *psv1.FetchRequest, stream psv1raylink.CaptainFetchServerStream) error {
	return c.home.Fetch(ctx, req, stream)
}

// Watch sends the newest version of a tag whenever it changes.
func (c *captain) Watch(ctx context.Context, req *psv1.WatchRequest, stream psv1raylink.CaptainWatchServerStream) error {
	return c.home.Watch(ctx, req, stream)
}

// GetID returns the id of a tag's newest version.
func (c *captain) GetID(_ context.Context, req *psv1.GetIDRequest) (*psv1.GetIDResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	res := &psv1.GetIDResponse{}
	if t := c.tags[req.GetTag()]; t != nil {
		res.Id, res.Last = t.newest.GetId(), t.last
	}
	return res, nil
}

// GetMeta describes the newest version of a tag.
func (c *captain) GetMeta(_ context.Context, req *psv1.GetMetaRequest) (*psv1.GetMetaResponse, error) {
	v := c.newest(req.GetTag())
	if v == nil {
		return nil, c.noVersion(req.GetTag())
	}
	return &psv1.GetMetaResponse{Version: v}, nil
}

// newest returns the newest version of a tag, or nil.
func (c *captain) newest(tag string) *psv1.Version {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.tags[tag].get()
}

// lastOf returns the last id of a tag.
func (c *captain) lastOf(tag string) uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	if t := c.tags[tag]; t != nil {
		return t.last
	}
	return 0
}

// noVersion is the error for a tag without a version. It says what exists.
func (c *captain) noVersion(tag string) error {
	return noVersionAmong(tag, c.home.store.Versions())
}

// ListTags returns the newest version of each tag.
func (c *captain) ListTags(context.Context, *psv1.ListTagsRequest) (*psv1.ListTagsResponse, error) {
	return &psv1.ListTagsResponse{Versions: c.home.store.Versions()}, nil
}

// Duplicate pushes a copy of a tag's newest version under another tag.
func (c *captain) Duplicate(ctx context.Context, req *psv1.DuplicateRequest) (*psv1.DuplicateResponse, error) {
	source, err := c.home.store.SourceOf(req.GetFrom())
	if errors.Is(err, store.ErrNoVersion) {
		return nil, c.noVersion(req.GetFrom())
	}
	if err != nil {
		return nil, withCode(err)
	}
	defer func() { _ = source.Release() }()
	from := source.Version()
	push := &psv1.PushRequest{Tag: req.GetTo(), Info: from.GetInfo()}
	d, err := c.reserve(draftOf(push, from.GetSize(), newToken()), 0)
	if err != nil {
		return nil, err
	}
	if err := copyChunks(ctx, d, source); err != nil {
		return nil, withCode(errors.Join(err, d.Discard()))
	}
	res, err := c.commit(ctx, d, push)
	return &psv1.DuplicateResponse{Version: res.GetVersion()}, err
}

func copyChunks(ctx context.Context, d *store.Draft, source *store.Source) error {
	for i := range d.Chunks() {
		data, sum, err := source.Chunk(ctx, i)
		if err != nil {
			return err
		}
		if err := d.WriteChunk(i, data, sum); err != nil {
			return err
		}
	}
	return nil
}

// Delete deletes a tag.
func (c *captain) Delete(_ context.Context, req *psv1.DeleteRequest) (*psv1.DeleteResponse, error) {
	c.committing.Lock()
	defer c.committing.Unlock()
	if c.newest(req.GetTag()) == nil {
		return nil, c.noVersion(req.GetTag())
	}
	last := c.lastOf(req.GetTag())
	if err := c.home.store.Delete(req.GetTag(), last); err != nil {
		return nil, withCode(err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.tags[req.GetTag()].newest = nil
	c.announce(req.GetTag())
	c.home.notify()
	return &psv1.DeleteResponse{Last: last}, nil
}

// state returns what the officer of a session should have of a tag. The caller holds mu.
func (c *captain) state(s *session, tag string) *psv1.TagState {
	t := c.tags[tag]
	state := &psv1.TagState{Tag: tag, Newest: t.newest, Last: t.last}
	size := t.newest.GetSize()
	for _, v := range t.coming {
		state.Coming = append(state.Coming, v)
		size = max(size, v.GetSize())
	}
	state.Sources = append(c.sources(s, size), c.homeRef)
	return proto.CloneOf(state)
}
