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

// session is a host's session with Brain: its lease, and the watch on the nodes whose handles it
// holds. Both are streams that are reopened with backoff whenever they end: a host continues to
// serve without Brain.
type session struct {
	host  *Host
	hello *brainv1.HelloResponse
	// lastTraffic is when the lease stream last saw traffic from Brain, in Unix nanoseconds.
	lastTraffic atomic.Int64

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
		transport = h.peers.Brain(where)
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
	h.session = &session{
		host: h, hello: hello, watched: make(map[string]int), unsent: make(map[string]struct{}), changed: make(chan struct{}, 1),
		leaving: make(chan struct{}), left: make(chan struct{}),
	}
	attached := make(chan error, 1)
	h.goBackground(func(ctx context.Context) { h.session.attach(ctx, attached) })
	h.goBackground(h.session.watch)
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
func (s *session) attach(ctx context.Context, first chan<- error) {
	defer close(s.left)
	var once sync.Once
	tell := func(err error) { once.Do(func() { first <- err }) }
	retry := s.backoff()
	log := partOf(s.host.options.Logger, logs.Session)
	// Brain's absence is logged when it begins and when it ends, not for each attempt.
	var joined bool
	var away time.Time
	for {
		held, err := s.holdLease(ctx, func() {
			tell(nil)
			if joined = true; !away.IsZero() {
				log.Warn("Brain is back", slog.Duration("away", time.Since(away).Round(time.Millisecond)))
				away = time.Time{}
			}
		})
		if err == nil {
			s.acknowledged.Store(true)
			return
		}
		if ctx.Err() != nil {
			return
		}
		tell(err)
		if joined && away.IsZero() {
			away = time.Now()
			select {
			case <-s.leaving:
			default:
				log.Warn("Brain is away; nodes that know each other go on, and it is looked for", slog.Any("error", err))
			}
		}
		if held {
			retry.Reset()
		}
		log.Debug("the lease stream ended", slog.Any("error", err))
		select {
		case <-s.leaving:
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
func (s *session) backoff() *backoff.Backoff {
	most := maxBrainPause
	if lease := s.hello.GetLease().AsDuration(); lease > 0 {
		most = min(most, lease/8)
	}
	return &backoff.Backoff{Max: most}
}

// holdLease runs one lease stream. It returns nil only after Brain has acknowledged a goodbye.
func (s *session) holdLease(ctx context.Context, attached func()) (held bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := s.host.brain.Attach(ctx)
	if err != nil {
		return false, err
	}
	defer func() { _ = stream.Close() }()
	if err := stream.Send(&brainv1.AttachRequest{Host: s.host.info(), Nodes: s.host.nodeRefs()}); err != nil {
		return false, endOf(stream, err)
	}
	res, err := stream.Receive()
	if err != nil {
		return false, err
	}
	s.host.listener.setPolicy(res.GetWeb())
	s.reconcile(ctx, res.GetUnknown())
	attached()
	s.lastTraffic.Store(time.Now().UnixNano())
	ended := make(chan error, 1)
	go func() {
		for {
			if _, err := stream.Receive(); err != nil {
				ended <- err
				return
			}
			s.lastTraffic.Store(time.Now().UnixNano())
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
		case <-s.leaving:
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
func (s *session) reconcile(ctx context.Context, unknown []string) {
	if len(unknown) == 0 {
		return
	}
	hello, err := s.host.brain.Hello(ctx, &brainv1.HelloRequest{MinVersion: minBrainVersion, MaxVersion: maxBrainVersion})
	if err != nil {
		return // the stream will end too, and be reopened
	}
	if hello.GetBrainId() != s.hello.GetBrainId() {
		s.host.log.Error("another Brain answers at the address of the one that was joined; the nodes here go on serving those who hold a handle")
		return
	}
	for _, nid := range unknown {
		if n := s.host.localNode(nid); n != nil && !n.isStopping() {
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
func (s *session) goodbye(ctx context.Context) {
	close(s.leaving)
	select {
	case <-s.left:
	case <-ctx.Done():
	case <-time.After(time.Second):
		// Brain is unreachable; the lease will expire.
	}
}

// watch follows the nodes whose handles this process holds, until ctx ends.
func (s *session) watch(ctx context.Context) {
	retry := s.backoff()
	for ctx.Err() == nil {
		opened := time.Now()
		// A stream that stayed open has worked too, even without a record.
		if s.follow(ctx) || time.Since(opened) > maxBrainPause {
			retry.Reset()
		}
		if retry.Wait(ctx) != nil {
			return
		}
	}
}

// follow runs one watch stream until it ends. It reports whether it has received any record.
func (s *session) follow(ctx context.Context) (worked bool) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := s.host.brain.Watch(ctx)
	if err != nil {
		return false
	}
	// A new stream follows no node yet: the first request names every nid.
	s.mu.Lock()
	clear(s.unsent)
	first := &brainv1.WatchRequest{Add: slices.Collect(maps.Keys(s.watched))}
	s.mu.Unlock()
	var sending sync.WaitGroup
	sending.Go(func() {
		// The first request is sent even if it is empty: it opens the stream.
		for req := first; ; req = s.nextRequest() {
			if req == first || len(req.GetAdd())+len(req.GetRemove()) > 0 {
				if err := stream.Send(req); err != nil {
					return
				}
			}
			select {
			case <-s.changed:
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
			s.host.updateRemote(rec)
		}
	}
}

// nextRequest contains the changes since the last request.
func (s *session) nextRequest() *brainv1.WatchRequest {
	s.mu.Lock()
	defer s.mu.Unlock()
	req := &brainv1.WatchRequest{}
	for nid := range s.unsent {
		if s.watched[nid] > 0 {
			req.Add = append(req.Add, nid)
		} else {
			req.Remove = append(req.Remove, nid)
		}
	}
	clear(s.unsent)
	return req
}

// add follows a node for one more remote. Brain answers with the node's current record even if
// another remote already follows the node: what that remote received may have been collected with
// it.
func (s *session) add(nid string) {
	s.mu.Lock()
	s.watched[nid]++
	s.unsent[nid] = struct{}{}
	s.mu.Unlock()
	s.wake()
}

// remove undoes one add. The node is followed until every add is undone.
func (s *session) remove(nid string) {
	s.mu.Lock()
	if s.watched[nid]--; s.watched[nid] <= 0 {
		delete(s.watched, nid)
		s.unsent[nid] = struct{}{}
	}
	s.mu.Unlock()
	s.wake()
}

func (s *session) wake() {
	select {
	case s.changed <- struct{}{}:
	default:
	}
}

// updateRemote passes a record to the handles of the node in this process.
func (h *Host) updateRemote(rec *nodev1.NodeRecord) {
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
