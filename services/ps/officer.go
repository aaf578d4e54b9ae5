package ps

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"connectrpc.com/connect/v2"
	"golang.org/x/sys/unix"

	nodev1 "github.com/raylink/raylink/gen/raylink/node/v1"
	psv1 "github.com/raylink/raylink/gen/raylink/ps/v1"
	"github.com/raylink/raylink/gen/raylink/ps/v1/psv1raylink"
	"github.com/raylink/raylink/internal/backoff"
	"github.com/raylink/raylink/runtime"
	"github.com/raylink/raylink/runtime/rundir"
	"github.com/raylink/raylink/services/ps/store"
)

// officer is a machine's copy of a captain's parameters, and serves it as an officer node. It
// outlives the node, which ends with each of the captain's incarnations.
type officer struct {
	psv1raylink.UnimplementedOfficerNode

	machine string
	// host is the machine of this process: machine, but in tests.
	host string
	// home is set for the copy of the captain's own machine. The captain publishes in it.
	home   bool
	config *psv1.CaptainConfig
	store  *store.Store
	nonce  string
	log    *slog.Logger

	// mu guards the fields below.
	mu sync.Mutex
	// find returns the handle of another officer.
	find func(ref *nodev1.NodeRef) (*psv1raylink.Officer, error)
	tags map[string]*tagFetches
	// closing is set once no fetch may begin.
	closing bool
	// changed is closed, and replaced, when a version was published, a tag was deleted, or a draft
	// begins.
	changed chan struct{}
	// stored are the newest versions that were stored since the last report to the captain, by tag;
	// reports has an entry if there are some.
	stored  map[string]*psv1.Version
	reports chan struct{}
	// running counts the fetches.
	running sync.WaitGroup
}

// tagFetches are the fetches of a tag.
type tagFetches struct {
	// applying is held while a state is applied.
	applying sync.Mutex
	// The officer's mu guards the fields below.
	state   *psv1.TagState
	fetches map[string]context.CancelFunc
}

// nonceFile is the file that proves that a client shares the officer's file system.
const nonceFile = "nonce"

// parametersFolder is the folder of the data directory that has the directories of officers.
const parametersFolder = "parameters"

// keepFile marks the files of a captain that is started again: they are not swept.
const keepFile = "keep"

// keep marks the files.
func (o *officer) keep() error {
	err := os.WriteFile(filepath.Join(o.store.Directory(), keepFile), nil, 0o600)
	if err != nil {
		return fmt.Errorf("mark the parameter files of a captain that restarts: %w", err)
	}
	return nil
}

// copyDirectory returns the directory of a machine's copy of a captain's parameters. It is the same
// for every incarnation of the captain and every process of the machine.
func copyDirectory(self *runtime.Node, config *psv1.CaptainConfig, captainNID, machine string) string {
	base := config.GetDirectory()
	if base == "" {
		base = filepath.Join(self.RunDirectory().Data(), parametersFolder)
	}
	return filepath.Join(base, copyName(captainNID, machine))
}

// openCopy creates a machine's copy, or takes it over from a process that has died.
func openCopy(directory, machine string, config *psv1.CaptainConfig, log *slog.Logger) (*officer, error) {
	host, err := rundir.Machine()
	if err != nil {
		return nil, err
	}
	s, err := store.Open(directory, options(config))
	if err != nil {
		return nil, err
	}
	o := &officer{
		machine: machine, host: host, config: config, store: s, nonce: newToken(), log: log, tags: make(map[string]*tagFetches),
		changed: make(chan struct{}), stored: make(map[string]*psv1.Version), reports: make(chan struct{}, 1),
	}
	path := filepath.Join(directory, nonceFile)
	if err := errors.Join(ignoreMissing(os.Remove(path)), writePrivate(path, o.nonce)); err != nil {
		return nil, errors.Join(fmt.Errorf("write nonce: %w", err), s.Close())
	}
	return o, nil
}

func ignoreMissing(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// writePrivate creates a file that only its user can access.
func writePrivate(path, content string) error {
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	_, err = file.WriteString(content)
	return errors.Join(err, file.Close())
}

// close ends the copy, and removes its files if they are to be.
func (o *officer) close(remove bool) error {
	o.cancelFetches()
	o.running.Wait()
	if remove {
		return o.store.Remove()
	}
	return o.store.Close()
}

// sweepInterval is how often the memory of versions that no reader holds any longer is freed.
const sweepInterval = 500 * time.Millisecond

// maintain frees the memory of old versions when their readers release them or die.
func (o *officer) maintain(ctx context.Context) error {
	ticker := time.NewTicker(sweepInterval)
	defer ticker.Stop()
	failing := false
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		err := o.store.Sweep()
		if errors.Is(err, store.ErrClosed) {
			return nil
		}
		if err != nil && !failing {
			o.log.Warn("the memory of old parameters can't be freed; it is tried again", slog.Any("error", err))
		}
		failing = err != nil
	}
}

// notify wakes watchers.
func (o *officer) notify() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.broadcast()
}

// broadcast is notify for a caller that holds mu.
func (o *officer) broadcast() {
	close(o.changed)
	o.changed = make(chan struct{})
}

func (o *officer) changes() <-chan struct{} {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.changed
}

// lentGrace bounds how long parameters whose pusher is done are kept until the captain's state
// makes them a version.
const lentGrace = 10 * time.Second

// Lend reserves memory for a pusher on this machine. A pusher that ends its requests has pushed the
// parameters; when the stream ends otherwise, they are discarded.
func (o *officer) Lend(ctx context.Context, stream psv1raylink.OfficerLendServerStream) error {
	first, err := stream.Receive()
	if err != nil {
		return err
	}
	v := first.GetReserve()
	if v == nil {
		return connect.NewError(connect.CodeInvalidArgument, "lend: the first message must reserve memory")
	}
	content := v.GetContent()
	if content == "" {
		content = newToken()
	}
	d, err := o.store.Reserve(v, content)
	if err != nil {
		return withCode(err)
	}
	if err := o.lend(ctx, d, stream); err != nil {
		return errors.Join(err, d.Discard())
	}
	time.AfterFunc(lentGrace, func() { _ = d.Discard() }) // does nothing once it is a version
	return nil
}

func (o *officer) lend(ctx context.Context, d *store.Draft, stream psv1raylink.OfficerLendServerStream) error {
	if err := d.Lend(); err != nil {
		return err
	}
	res := &psv1.LendResponse{Path: d.Path(), Content: d.Content()}
	if err := stream.Send(res); err != nil {
		return err
	}
	seal, err := receiveOr(stream.Receive, stoppingOf(ctx))
	if err != nil {
		return err
	}
	if err := d.Reclaim(seal.GetSeal()); err != nil {
		return withCode(err)
	}
	if err := stream.Send(&psv1.LendResponse{Path: res.GetPath(), Content: res.GetContent()}); err != nil {
		return err
	}
	_, err = receiveOr(stream.Receive, stoppingOf(ctx))
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// receiveOr receives a message, unless the node stops first.
func receiveOr[M any](receive func() (M, error), stopping <-chan struct{}) (M, error) {
	type result struct {
		msg M
		err error
	}
	received := make(chan result, 1)
	go func() {
		msg, err := receive()
		received <- result{msg, err}
	}()
	select {
	case r := <-received:
		return r.msg, r.err
	case <-stopping:
		var none M
		return none, connect.NewError(connect.CodeUnavailable, "the officer stops")
	}
}

// Watch sends the newest version of a tag whenever it changes.
func (o *officer) Watch(ctx context.Context, req *psv1.WatchRequest, stream psv1raylink.OfficerWatchServerStream) error {
	ticker := time.NewTicker(2 * tick)
	defer ticker.Stop()
	stopping := stoppingOf(ctx)
	for {
		changed := o.changes()
		v := o.store.Newest(req.GetTag())
		if err := stream.Send(&psv1.WatchResponse{Version: v}); err != nil {
			return err
		}
		for same := true; same; {
			select {
			case <-changed:
				changed = o.changes()
				same = o.store.Newest(req.GetTag()).GetId() == v.GetId()
			case <-ticker.C:
				same = false
			case <-stopping:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}
}

// Pull returns the newest parameters of a tag, if they fit into a message.
func (o *officer) Pull(ctx context.Context, req *psv1.PullRequest) (*psv1.PullResponse, error) {
	source, err := o.store.SourceOf(req.GetTag())
	if err != nil {
		return nil, o.sourceError(req.GetTag(), err)
	}
	defer func() { _ = source.Release() }()
	v := source.Version()
	if v.GetId() == req.GetHave() {
		return &psv1.PullResponse{Version: v, Unchanged: true}, nil
	}
	if limit := runtime.NodeFrom(ctx).MaxMessage() - (store.MaxDescription + 1<<10); v.GetSize() > uint64(max(0, limit)) {
		return nil, connect.Errorf(connect.CodeResourceExhausted,
			"pull %q: version %d has %d bytes, which exceeds one message: call Fetch", req.GetTag(), v.GetId(), v.GetSize())
	}
	return &psv1.PullResponse{Version: v, Parameters: slices.Clone(source.Bytes())}, nil
}

// sourceError converts an error of the store: one about a tag says which tags exist.
func (o *officer) sourceError(tag string, err error) error {
	if !errors.Is(err, store.ErrNoVersion) {
		return withCode(err)
	}
	return noVersionAmong(tag, o.store.Versions())
}

// GetID returns the id of a tag's newest version on this machine.
func (o *officer) GetID(_ context.Context, req *psv1.GetIDRequest) (*psv1.GetIDResponse, error) {
	return &psv1.GetIDResponse{Id: o.store.Newest(req.GetTag()).GetId(), Last: o.store.Last(req.GetTag())}, nil
}

// ListTags returns the newest version of each tag on this machine.
func (o *officer) ListTags(context.Context, *psv1.ListTagsRequest) (*psv1.ListTagsResponse, error) {
	return &psv1.ListTagsResponse{Versions: o.store.Versions()}, nil
}

// Directory returns the directory of the mapped files, and its nonce.
func (o *officer) Directory(context.Context, *psv1.DirectoryRequest) (*psv1.DirectoryResponse, error) {
	return o.directory(), nil
}

func (o *officer) directory() *psv1.DirectoryResponse {
	return &psv1.DirectoryResponse{Directory: o.store.Directory(), Nonce: o.nonce, Machine: o.host}
}

// enlist holds the session with the captain. It is opened again whenever it has ended, until the
// node ends.
func (o *officer) enlist(ctx context.Context, captain *psv1raylink.Captain, self *nodev1.NodeRef) error {
	pause := backoff.Backoff{First: firstPause, Max: maxPause}
	failing := false
	for ctx.Err() == nil {
		began := time.Now()
		err := o.session(ctx, captain, self)
		if ctx.Err() != nil {
			break
		}
		if slices.Contains(refusals, connect.CodeOf(err)) {
			return fmt.Errorf("enlist with the captain: %w", err)
		}
		if time.Since(began) > maxPause {
			pause.Reset()
			failing = false
		}
		if !failing {
			failing = true
			o.log.Warn("the officer's session with its captain has ended; it is opened again", slog.Any("error", err))
		}
		_ = pause.Wait(ctx)
	}
	return nil //nolint:nilerr // the node stops
}

// refusals are the codes with which a captain refuses an officer for good.
var refusals = []connect.Code{ //nolint:gochecknoglobals // a constant
	connect.CodeAborted, connect.CodeAlreadyExists, connect.CodeInvalidArgument, connect.CodeResourceExhausted,
}

// Bounds of the pauses between attempts to reach an officer or the captain.
const (
	firstPause = 20 * time.Millisecond
	maxPause   = time.Second
)

// session is one session with the captain.
func (o *officer) session(ctx context.Context, captain *psv1raylink.Captain, self *nodev1.NodeRef) error {
	stream, err := captain.Enlist(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = stream.Close() }()
	err = stream.Send(&psv1.EnlistRequest{Hello: &psv1.Hello{
		Machine: o.machine, Officer: self, Directory: o.directory(), Versions: o.store.Versions(), Deleted: o.store.Floors(),
	}})
	if err != nil {
		_, err = stream.Receive()
		return err
	}
	received := make(chan error, 1)
	go func() { received <- o.receive(stream) }()
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	for {
		messages := []*psv1.EnlistRequest{{}}
		select {
		case err := <-received:
			return err
		case <-ctx.Done():
			return ctx.Err()
		case <-o.reports:
			messages = o.takeReports()
		case <-ticker.C:
		}
		for _, m := range messages {
			if err := stream.Send(m); err != nil {
				return <-received
			}
		}
	}
}

func (o *officer) takeReports() []*psv1.EnlistRequest {
	o.mu.Lock()
	defer o.mu.Unlock()
	messages := make([]*psv1.EnlistRequest, 0, len(o.stored))
	for _, v := range o.stored {
		messages = append(messages, &psv1.EnlistRequest{Stored: v})
	}
	clear(o.stored)
	return messages
}

// receive applies the states that the captain sends.
func (o *officer) receive(stream psv1raylink.CaptainEnlistClientStream) error {
	for {
		res, err := stream.Receive()
		if err != nil {
			return err
		}
		o.store.Confirm()
		if state := res.GetState(); state != nil {
			o.apply(state)
		}
	}
}

// report has the session tell the captain that a version is stored.
func (o *officer) report(v *psv1.Version) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.stored[v.GetTag()] = v
	select {
	case o.reports <- struct{}{}:
	default:
	}
	o.broadcast()
}

// apply makes a state the one to reach: it begins the fetches that the state needs, and ends those
// of contents that have been overtaken.
func (o *officer) apply(state *psv1.TagState) {
	tag := state.GetTag()
	if err := o.store.Announce(tag, state.GetNewest().GetId()); err != nil {
		o.log.Warn("the newest version can't be announced to readers", slog.String("tag", tag), slog.Any("error", err))
	}
	o.mu.Lock()
	t, ok := o.tags[tag]
	if !ok {
		t = &tagFetches{fetches: make(map[string]context.CancelFunc)}
		o.tags[tag] = t
	}
	t.state = state
	o.mu.Unlock()
	o.reach(tag, t)
}

// reach does what is missing for a tag's state: it publishes, deletes, and begins and ends fetches.
func (o *officer) reach(tag string, t *tagFetches) {
	t.applying.Lock()
	defer t.applying.Unlock()
	o.mu.Lock()
	state := t.state
	o.mu.Unlock()
	newest := state.GetNewest()
	if newest == nil && (o.store.Newest(tag) != nil || o.store.Last(tag) < state.GetLast()) {
		if err := o.store.Delete(tag, state.GetLast()); err != nil {
			o.log.Warn("a tag can't be deleted", slog.String("tag", tag), slog.Any("error", err))
		}
		o.notify()
	}
	wanted := make(map[string]*psv1.Version)
	for _, v := range state.GetComing() {
		wanted[v.GetContent()] = v
	}
	if newest != nil && newest.GetId() > o.store.Last(tag) {
		if !o.publish(newest) {
			wanted[newest.GetContent()] = newest
		}
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	for content, cancel := range t.fetches {
		if wanted[content] == nil {
			cancel()
		}
	}
	for content, v := range wanted {
		if t.fetches[content] == nil && o.store.Draft(content) == nil {
			o.begin(tag, t, v)
		}
	}
}

// publish publishes a version whose content is complete on this machine, and reports whether it
// did.
func (o *officer) publish(v *psv1.Version) bool {
	d := o.store.Draft(v.GetContent())
	if d == nil || !d.Complete() {
		return false
	}
	published, err := o.store.Publish(d, v)
	if err != nil {
		o.log.Warn("parameters can't be published; they are fetched again", slog.String("tag", v.GetTag()), slog.Any("error", err))
		_ = d.Discard()
		return false
	}
	if published {
		o.report(v)
	}
	return true
}

// begin begins to fetch a content. The caller holds mu.
func (o *officer) begin(tag string, t *tagFetches, v *psv1.Version) {
	if o.closing {
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	t.fetches[v.GetContent()] = cancel
	sources := func() []*nodev1.NodeRef {
		o.mu.Lock()
		defer o.mu.Unlock()
		return t.state.GetSources()
	}
	o.running.Go(func() {
		defer cancel()
		_ = o.fetch(ctx, v, sources) // it fails only if it is canceled
		o.mu.Lock()
		delete(t.fetches, v.GetContent())
		closing := o.closing
		o.mu.Unlock()
		if !closing { // the state may want the content again
			o.reach(tag, t)
		}
	})
}

// fetch fetches a content until it is complete or ctx ends. It retries for as long as that takes,
// and keeps the chunks that it has.
func (o *officer) fetch(ctx context.Context, v *psv1.Version, sources func() []*nodev1.NodeRef) error {
	pause := backoff.Backoff{First: firstPause, Max: maxPause}
	draft := &psv1.Version{Tag: v.GetTag(), Size: v.GetSize(), Info: v.GetInfo(), Content: v.GetContent()}
	failing := false
	var d *store.Draft
	for {
		var err error
		if d == nil {
			if d, err = o.store.Reserve(draft, v.GetContent()); err == nil {
				o.notify() // officers that fetch from this one may wait for the draft
			}
		}
		if err == nil {
			if err = o.fill(ctx, d, sources); err == nil {
				return nil
			}
		}
		if errors.Is(err, store.ErrClosed) {
			return err
		}
		if !failing && ctx.Err() == nil {
			failing = true
			o.log.Warn("parameters can't be fetched; it is tried again", slog.String("tag", v.GetTag()), slog.Any("error", err))
		}
		if pause.Wait(ctx) == nil {
			continue
		}
		if d != nil {
			_ = d.Discard()
		}
		return ctx.Err()
	}
}

// cancelFetches cancels all fetches. None begins afterwards.
func (o *officer) cancelFetches() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.closing = true
	for _, t := range o.tags {
		for _, cancel := range t.fetches {
			cancel()
		}
	}
}
