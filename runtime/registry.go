package runtime

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"
	"weak"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connectinprocess"

	brainv1 "github.com/raylink/raylink/gen/raylink/brain/v1"
	"github.com/raylink/raylink/gen/raylink/brain/v1/brainv1connect"
	nodev1 "github.com/raylink/raylink/gen/raylink/node/v1"
	"github.com/raylink/raylink/internal/backoff"
	"github.com/raylink/raylink/internal/logs"
)

// The supported versions of Brain's protocol.
const (
	minBrainVersion = 1
	maxBrainVersion = 1
)

// registry is a host's session with Brain: its lease, and the watch on the nodes whose handles it
// holds. Both are streams that are reopened with backoff whenever they end: a host continues to
// serve without Brain.
type registry struct {
	host  *Host
	hello *brainv1.HelloResponse
	// heard is when the lease stream last saw traffic from Brain, in Unix nanoseconds.
	heard atomic.Int64

	mu sync.Mutex // guards the fields below
	// watched counts, by nid, the remotes that follow a node: until the garbage collector has run
	// there can be more than one. unsent are the nids that were added or removed since the last
	// request on the watch stream; changed wakes its sender.
	watched map[string]int
	unsent  map[string]struct{}
	changed chan struct{}
	// leaving is closed when the host ends its session, left when the session has ended.
	leaving chan struct{}
	left    chan struct{}
	// acknowledged is set when Brain has recorded that this host and its nodes have ended.
	acknowledged atomic.Bool
}

// join connects to Brain and gets this host's lease.
func (h *Host) join(ctx context.Context, embedded bool) error {
	var transport connect.Transport
	where := h.options.Brain
	if embedded {
		transport, where = connectinprocess.New(h.server), "embedded"
	} else {
		if where == "" {
			return connect.NewError(connect.CodeFailedPrecondition, "no Brain to join: give its address with --brain or RAYLINK_BRAIN, or start one with `raylink brain`")
		}
		transport = h.links.brain(where)
	}
	h.brain = brainClient{brainv1connect.NewBrainServiceClient(connect.NewClient(transport))}
	hello, err := h.brain.Hello(ctx, &brainv1.HelloRequest{MinVersion: minBrainVersion, MaxVersion: maxBrainVersion})
	if connect.CodeOf(err) == connect.CodeUnimplemented {
		return connect.Errorf(connect.CodeFailedPrecondition,
			"joining Brain at %s: a host of nodes answers there, and no Brain: give Brain's address with WithBrain or RAYLINK_BRAIN", where).WithCause(err)
	}
	if err != nil {
		return fmt.Errorf("joining Brain at %s: %w", where, err)
	}
	if !embedded {
		h.warnUnreachable(ctx, where, hello.GetRoot().GetHost())
	}
	h.registry = &registry{
		host: h, hello: hello, watched: make(map[string]int), unsent: make(map[string]struct{}), changed: make(chan struct{}, 1),
		leaving: make(chan struct{}), left: make(chan struct{}),
	}
	attached := make(chan error, 1)
	h.goBackground(func(ctx context.Context) { h.registry.attach(ctx, attached) })
	h.goBackground(h.registry.watch)
	select {
	case err := <-attached:
		if err != nil {
			return fmt.Errorf("asking Brain at %s for a lease: %w", where, err)
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("waiting for a lease of Brain at %s: %w", where, causeOf(ctx))
	}
}

// attach holds the host's lease until ctx ends. first receives one value: nil when the lease is
// granted, or the error that refused it.
func (r *registry) attach(ctx context.Context, first chan<- error) {
	defer close(r.left)
	var once sync.Once
	tell := func(err error) { once.Do(func() { first <- err }) }
	retry := r.backoff()
	log := partOf(r.host.options.Logger, logs.Session)
	// Brain's absence is logged when it begins and when it ends, not for each attempt.
	var joined bool
	var away time.Time
	for {
		held, err := r.holdLease(ctx, func() {
			tell(nil)
			if joined = true; !away.IsZero() {
				log.Warn("Brain is back", slog.Duration("away", time.Since(away).Round(time.Millisecond)))
				away = time.Time{}
			}
		})
		if err == nil {
			r.acknowledged.Store(true)
			return
		}
		if ctx.Err() != nil {
			return
		}
		tell(err)
		if joined && away.IsZero() {
			away = time.Now()
			select {
			case <-r.leaving:
			default:
				log.Warn("Brain is away; nodes that know each other go on, and it is looked for", slog.Any("error", err))
			}
		}
		if held {
			retry.Reset()
		}
		log.Debug("the lease stream ended", slog.Any("error", err))
		select {
		case <-r.leaving:
			return
		default:
		}
		if retry.Wait(ctx) != nil {
			return
		}
	}
}

// maxBrainPause bounds the pause between two attempts to reach Brain: a death notice must arrive
// within a second, even just after Brain has come back.
const maxBrainPause = 500 * time.Millisecond

// backoff paces the attempts to reach Brain. Its maximum is a fraction of the lease, so that a host
// that has lost Brain makes several attempts before its lease expires. Brain's option Reattach
// relies on that maximum.
func (r *registry) backoff() *backoff.Backoff {
	most := maxBrainPause
	if lease := r.hello.GetLease().AsDuration(); lease > 0 {
		most = min(most, lease/8)
	}
	return &backoff.Backoff{Max: most}
}

// holdLease runs one lease stream. It returns nil only after Brain has acknowledged a goodbye.
func (r *registry) holdLease(ctx context.Context, attached func()) (held bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := r.host.brain.Attach(ctx)
	if err != nil {
		return false, err
	}
	defer func() { _ = stream.Close() }()
	if err := stream.Send(&brainv1.AttachRequest{Host: r.host.Info(), Nodes: r.host.nodeRefs()}); err != nil {
		return false, endOf(stream, err)
	}
	res, err := stream.Receive()
	if err != nil {
		return false, err
	}
	r.host.front.setPolicy(res.GetWeb())
	r.reconcile(ctx, res.GetUnknown())
	attached()
	r.heard.Store(time.Now().UnixNano())
	ended := make(chan error, 1)
	go func() {
		for {
			if _, err := stream.Receive(); err != nil {
				ended <- err
				return
			}
			r.heard.Store(time.Now().UnixNano())
		}
	}()
	lease := res.GetLease().AsDuration()
	sign := time.NewTicker(max(lease/4, 10*time.Millisecond))
	defer sign.Stop()
	for {
		select {
		case <-sign.C:
			if err := stream.Send(&brainv1.AttachRequest{}); err != nil {
				// The receiving goroutine gets the reason. A second, concurrent Receive would wait
				// for a message that the first has taken.
				return true, errors.Join(<-ended, err)
			}
		case err := <-ended:
			return true, err
		case <-r.leaving:
			if err := stream.Send(&brainv1.AttachRequest{Goodbye: true}); err != nil {
				return true, err
			}
			if err := stream.CloseSend(); err != nil {
				return true, err
			}
			select {
			case err := <-ended:
				if errors.Is(err, io.EOF) {
					err = nil // Brain has recorded that the host has ended
				}
				return true, err
			case <-ctx.Done():
				return true, ctx.Err()
			}
		}
	}
}

// reconcile ends the nodes that Brain has declared dead while their host was unreachable: callers
// of Brain have been informed of their death, and may have created replacements. A Brain other than
// the one that was joined does not know them, and its answer is ignored.
func (r *registry) reconcile(ctx context.Context, unknown []string) {
	if len(unknown) == 0 {
		return
	}
	hello, err := r.host.brain.Hello(ctx, &brainv1.HelloRequest{MinVersion: minBrainVersion, MaxVersion: maxBrainVersion})
	if err != nil {
		return // the stream will end too, and be reopened
	}
	if hello.GetBrainId() != r.hello.GetBrainId() {
		r.host.log.Error("another Brain answers at the address of the one that was joined; the nodes here go on serving those who hold a handle")
		return
	}
	for _, nid := range unknown {
		if n := r.host.localNode(nid); n != nil && !n.isStopping() {
			n.fail(errors.New("its host could not be reached, and it was declared dead"))
		}
	}
}

// endOf is the reason why a stream ended on which Send failed; Receive returns it.
func endOf(stream interface {
	Receive() (*brainv1.AttachResponse, error)
}, sendErr error,
) error {
	for {
		if _, err := stream.Receive(); err != nil {
			return errors.Join(err, sendErr)
		}
	}
}

// goodbye gives the lease back gracefully.
func (r *registry) goodbye(ctx context.Context) {
	close(r.leaving)
	select {
	case <-r.left:
	case <-ctx.Done():
	case <-time.After(time.Second):
		// Brain is unreachable; the lease will expire.
	}
}

// watch follows the nodes whose handles this process holds, until ctx ends.
func (r *registry) watch(ctx context.Context) {
	retry := r.backoff()
	for ctx.Err() == nil {
		opened := time.Now()
		// A stream that stayed open has worked too, even without a record.
		if r.follow(ctx) || time.Since(opened) > maxBrainPause {
			retry.Reset()
		}
		if retry.Wait(ctx) != nil {
			return
		}
	}
}

// follow runs one watch stream until it ends. It reports whether it has received any record.
func (r *registry) follow(ctx context.Context) (worked bool) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := r.host.brain.Watch(ctx)
	if err != nil {
		return false
	}
	// A new stream follows no node yet: the first request names every nid.
	r.mu.Lock()
	clear(r.unsent)
	first := &brainv1.WatchRequest{Add: slices.Collect(maps.Keys(r.watched))}
	r.mu.Unlock()
	var sending sync.WaitGroup
	sending.Go(func() {
		// The first request is sent even if it is empty: it opens the stream.
		for req := first; ; req = r.nextRequest() {
			if req == first || len(req.GetAdd())+len(req.GetRemove()) > 0 {
				if err := stream.Send(req); err != nil {
					return
				}
			}
			select {
			case <-r.changed:
			case <-ctx.Done():
				return
			}
		}
	})
	defer sending.Wait()
	defer cancel()
	for {
		res, err := stream.Receive()
		if err != nil {
			return worked
		}
		worked = true
		for _, rec := range res.GetNodes() {
			r.host.told(rec)
		}
	}
}

// nextRequest contains the changes since the last request.
func (r *registry) nextRequest() *brainv1.WatchRequest {
	r.mu.Lock()
	defer r.mu.Unlock()
	req := &brainv1.WatchRequest{}
	for nid := range r.unsent {
		if r.watched[nid] > 0 {
			req.Add = append(req.Add, nid)
		} else {
			req.Remove = append(req.Remove, nid)
		}
	}
	clear(r.unsent)
	return req
}

// add follows a node for one more remote. Brain answers with the node's current record even if
// another remote already follows the node: what that remote received may have been collected with
// it.
func (r *registry) add(nid string) {
	r.mu.Lock()
	r.watched[nid]++
	r.unsent[nid] = struct{}{}
	r.mu.Unlock()
	r.wake()
}

// remove undoes one add. The node is followed until every add is undone.
func (r *registry) remove(nid string) {
	r.mu.Lock()
	if r.watched[nid]--; r.watched[nid] <= 0 {
		delete(r.watched, nid)
		r.unsent[nid] = struct{}{}
	}
	r.mu.Unlock()
	r.wake()
}

func (r *registry) wake() {
	select {
	case r.changed <- struct{}{}:
	default:
	}
}

// told passes a record to the handles of the node in this process.
func (h *Host) told(rec *nodev1.NodeRecord) {
	h.mu.Lock()
	r := h.remotes[rec.GetNid()].Value()
	h.mu.Unlock()
	if r != nil {
		r.update(rec)
	}
}

// nodeRefs are the nodes that live here, to be reported to Brain.
func (h *Host) nodeRefs() []*nodev1.NodeRef {
	nodes := h.localNodes()
	refs := make([]*nodev1.NodeRef, 0, len(nodes))
	for _, n := range nodes {
		refs = append(refs, n.Ref().NodeRef())
	}
	return refs
}

// remote returns the remote of a nid, which all handles of this process share. The node is followed
// as long as a handle exists.
func (h *Host) remote(nid string) *remote {
	h.mu.Lock()
	defer h.mu.Unlock()
	if r := h.remotes[nid].Value(); r != nil {
		return r
	}
	r := newRemote(h, nid)
	h.remotes[nid] = weak.Make(r)
	return r
}
