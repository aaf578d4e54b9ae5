// Package session is a host's session with Brain: its lease, and the watch on the nodes whose
// handles it holds.
//
// What a [Session] promises:
//
//   - The lease and the watch are streams that are reopened with backoff whenever they end, until
//     the context of their goroutines ends: a host continues to serve without Brain, and Brain's
//     absence is logged once when it begins and once when it ends.
//   - The pause between two attempts is a fraction of the lease, and half a second at most.
//   - Every [Session.Follow] is answered with the node's current record, and changes of the record
//     follow for as long as one more Follow than Unfollow was called for the node.
//   - The host is informed of its nodes that Brain has declared dead while it could not be reached,
//     unless another Brain answers than the one that was joined.
package session

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

	"connectrpc.com/connect/v2"

	brainv1 "github.com/raylink/raylink/gen/raylink/brain/v1"
	"github.com/raylink/raylink/gen/raylink/brain/v1/brainv1connect"
	machinev1 "github.com/raylink/raylink/gen/raylink/machine/v1"
	nodev1 "github.com/raylink/raylink/gen/raylink/node/v1"
	"github.com/raylink/raylink/internal/backoff"
	"github.com/raylink/raylink/internal/connecterr"
)

// The supported versions of Brain's protocol.
const (
	minBrainVersion = 1
	maxBrainVersion = 1
)

// Host is what a session reports of its host, and what it notifies of. The methods are called on
// goroutines of the session, which continue when they return.
type Host interface {
	// Info describes the host, and Nodes returns those on it. Brain gets them, and the machine,
	// with each new lease.
	Info() *nodev1.HostInfo
	Nodes() []*nodev1.NodeRef
	// Machine describes the machine that the host keeps; nil if it keeps none.
	Machine() *machinev1.Machine
	// OnPolicy is called with Brain's policy for HTTP clients, when a lease is granted.
	OnPolicy(policy *brainv1.WebPolicy)
	// OnAccess is called with what decides which clients are served: when a lease is granted, and
	// after each change. It is nil in a system without a CA of its own.
	OnAccess(policy *brainv1.AccessPolicy)
	// OnExpelled is called when Brain has ended the lease because the host may not be a part of the
	// system any more: its token was revoked.
	OnExpelled(reason error)
	// OnRecord is called with each record of a followed node that Brain sends. Records may repeat.
	OnRecord(rec *nodev1.NodeRecord)
	// OnDeclaredDead is called for a node of the host that Brain has declared dead: its callers may
	// have created a replacement.
	OnDeclaredDead(nid string)
}

// Client is the part of Brain's client that a session uses.
type Client interface {
	Hello(ctx context.Context, req *brainv1.HelloRequest) (*brainv1.HelloResponse, error)
	Attach(ctx context.Context) (brainv1connect.BrainServiceAttachClientStream, error)
	Watch(ctx context.Context) (brainv1connect.BrainServiceWatchClientStream, error)
}

// Config is what a [Session] needs.
type Config struct {
	Host  Host
	Brain Client
	// Address is Brain's, for error texts.
	Address string
	Log     *slog.Logger
	// Spawn runs fn on a goroutine of the host, with a context that ends with the host. It returns
	// false, without running fn, once the host has ended.
	Spawn func(fn func(context.Context)) bool
}

// Session is the session of one host. Its methods are safe for concurrent use.
type Session struct {
	config Config
	hello  *brainv1.HelloResponse
	// lastTraffic is when the lease stream last saw traffic from Brain, in Unix nanoseconds.
	lastTraffic atomic.Int64

	mu sync.Mutex // guards the fields below
	// watched counts the calls of Follow by nid. unsent are the nids that were followed or
	// unfollowed since the last request on the watch stream; changed wakes its sender.
	watched map[string]int
	unsent  map[string]struct{}
	changed chan struct{}
	// withdrawing is closed when the host does not keep its machine any more, and withdrawn when
	// Brain has recorded that.
	withdrawing, withdrawn chan struct{}
	withdrawal             sync.Once
	// leaving is closed when the host ends its session, left when the session has ended.
	leaving chan struct{}
	left    chan struct{}
	// acknowledged is set when Brain has recorded that this host and its nodes have ended.
	acknowledged atomic.Bool
}

// New agrees with Brain on a version of the protocol. The session begins with [Session.Attach].
func New(ctx context.Context, config Config) (*Session, error) {
	hello, err := config.Brain.Hello(ctx, &brainv1.HelloRequest{MinVersion: minBrainVersion, MaxVersion: maxBrainVersion})
	if connect.CodeOf(err) == connect.CodeUnimplemented {
		return nil, connect.Errorf(connect.CodeFailedPrecondition,
			"joining Brain at %s: a host of nodes answers there, and no Brain: give Brain's address with WithBrain or RAYLINK_BRAIN",
			config.Address).WithCause(err)
	}
	if err != nil {
		return nil, fmt.Errorf("joining Brain at %s: %w", config.Address, err)
	}
	return newSession(config, hello), nil
}

func newSession(config Config, hello *brainv1.HelloResponse) *Session {
	return &Session{
		config: config, hello: hello, watched: make(map[string]int), unsent: make(map[string]struct{}), changed: make(chan struct{}, 1),
		withdrawing: make(chan struct{}), withdrawn: make(chan struct{}), leaving: make(chan struct{}), left: make(chan struct{}),
	}
}

// first is the first message of a lease.
func (s *Session) first() *brainv1.AttachRequest {
	host := s.config.Host
	req := &brainv1.AttachRequest{Host: host.Info(), Nodes: host.Nodes()}
	select {
	case <-s.withdrawing:
	default:
		req.Machine = host.Machine()
	}
	return req
}

// Root refers to Brain as a node.
func (s *Session) Root() *nodev1.NodeRef { return s.hello.GetRoot() }

// LastTraffic is when Brain last sent something on the lease stream, in Unix nanoseconds; 0 before
// the first lease.
func (s *Session) LastTraffic() int64 { return s.lastTraffic.Load() }

// Acknowledged reports whether Brain has recorded that this host and its nodes have ended, after
// [Session.Goodbye].
func (s *Session) Acknowledged() bool { return s.acknowledged.Load() }

// Attach begins the session and blocks until Brain has granted the first lease or refused it. If
// ctx ends before that, Attach returns its error, and the session continues to try.
func (s *Session) Attach(ctx context.Context) error {
	attached := make(chan error, 1)
	s.config.Spawn(func(ctx context.Context) { s.attach(ctx, attached) })
	s.config.Spawn(s.watch)
	select {
	case err := <-attached:
		if err != nil {
			return fmt.Errorf("asking Brain at %s for a lease: %w", s.config.Address, err)
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("waiting for a lease of Brain at %s: %w", s.config.Address, connecterr.OfContext(ctx))
	}
}

// attach holds the host's lease until ctx ends. first receives one value: nil when the lease is
// granted, or the error that refused it.
func (s *Session) attach(ctx context.Context, first chan<- error) {
	defer close(s.left)
	var once sync.Once
	notify := func(err error) { once.Do(func() { first <- err }) }
	retry := s.backoff()
	log := s.config.Log
	// Brain's absence is logged when it begins and when it ends, not for each attempt.
	var joined, expelled bool
	var away time.Time
	for {
		held, err := s.holdLease(ctx, func() {
			notify(nil)
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
		notify(err)
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
		if joined && !expelled && s.isExpelled(err, held, away) {
			expelled = true
			s.config.Host.OnExpelled(err)
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

// isExpelled reports whether an error of the lease stream means that the host is no part of the
// system any more: Brain has declared it, or has refused its certificate until the lease was over.
func (s *Session) isExpelled(err error, held bool, away time.Time) bool {
	switch connect.CodeOf(err) { //nolint:exhaustive // the others are temporary
	case connect.CodePermissionDenied:
		return held
	case connect.CodeUnauthenticated:
		return time.Since(away) > s.hello.GetLease().AsDuration()
	}
	return false
}

// maxBrainPause bounds the pause between two attempts to reach Brain: a death notice must arrive
// within a second, even just after Brain has come back.
const maxBrainPause = 500 * time.Millisecond

// backoff spaces the attempts to reach Brain. Its maximum is a fraction of the lease, so that a
// host that has lost Brain makes several attempts before its lease expires. Brain's option Reattach
// relies on that maximum.
func (s *Session) backoff() *backoff.Backoff {
	most := maxBrainPause
	if lease := s.hello.GetLease().AsDuration(); lease > 0 {
		most = min(most, lease/8)
	}
	return &backoff.Backoff{Max: most}
}

// holdLease runs one lease stream. It returns nil only after Brain has acknowledged a goodbye.
func (s *Session) holdLease(ctx context.Context, attached func()) (held bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := s.config.Brain.Attach(ctx)
	if err != nil {
		return false, err
	}
	defer func() { _ = stream.Close() }()
	first := s.first()
	if err := stream.Send(first); err != nil {
		return false, endOf(stream, err)
	}
	res, err := stream.Receive()
	if err != nil {
		return false, err
	}
	s.config.Host.OnPolicy(res.GetWeb())
	s.config.Host.OnAccess(res.GetAccess())
	s.reconcile(ctx, res.GetUnknown())
	attached()
	s.lastTraffic.Store(time.Now().UnixNano())
	ended := make(chan error, 1)
	go func() {
		for {
			res, err := stream.Receive()
			if err != nil {
				ended <- err
				return
			}
			if res.GetAccess() != nil {
				s.config.Host.OnAccess(res.GetAccess())
			}
			if res.GetLeaving() {
				s.machineLeft()
			}
			s.lastTraffic.Store(time.Now().UnixNano())
		}
	}()
	lease := res.GetLease().AsDuration()
	sign := time.NewTicker(max(lease/4, 10*time.Millisecond))
	defer sign.Stop()
	withdrawing := s.withdrawing
	if first.GetMachine() == nil {
		s.machineLeft()
		withdrawing = nil
	}
	for {
		select {
		case <-withdrawing:
			withdrawing = nil
			if err := stream.Send(&brainv1.AttachRequest{Leaving: true}); err != nil {
				return true, errors.Join(<-ended, err)
			}
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
func (s *Session) reconcile(ctx context.Context, unknown []string) {
	if len(unknown) == 0 {
		return
	}
	hello, err := s.config.Brain.Hello(ctx, &brainv1.HelloRequest{MinVersion: minBrainVersion, MaxVersion: maxBrainVersion})
	if err != nil {
		return // the stream will end too, and be reopened
	}
	if hello.GetBrainId() != s.hello.GetBrainId() {
		s.config.Log.Error("another Brain answers at the address of the one that was joined; the nodes here continue to serve callers that have a handle")
		return
	}
	for _, nid := range unknown {
		s.config.Host.OnDeclaredDead(nid)
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

// LeaveMachine ends the declaration of the host's machine, while the lease goes on. It blocks until
// Brain has recorded that, for a second at most. It must be called once, before [Session.Goodbye].
func (s *Session) LeaveMachine(ctx context.Context) {
	close(s.withdrawing)
	select {
	case <-s.withdrawn:
	case <-s.left:
	case <-ctx.Done():
	case <-time.After(time.Second):
		// Brain is unreachable; it is informed when it is back.
	}
}

// machineLeft records that Brain knows no declaration of the host's machine.
func (s *Session) machineLeft() { s.withdrawal.Do(func() { close(s.withdrawn) }) }

// Goodbye gives the lease back gracefully, and blocks until Brain has recorded that, for a second
// at most. It must be called once.
func (s *Session) Goodbye(ctx context.Context) {
	close(s.leaving)
	select {
	case <-s.left:
	case <-ctx.Done():
	case <-time.After(time.Second):
		// Brain is unreachable; the lease will expire.
	}
}

// watch follows the nodes whose handles this process holds, until ctx ends.
func (s *Session) watch(ctx context.Context) {
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
func (s *Session) follow(ctx context.Context) (worked bool) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := s.config.Brain.Watch(ctx)
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
			s.config.Host.OnRecord(rec)
		}
	}
}

// nextRequest contains the changes since the last request.
func (s *Session) nextRequest() *brainv1.WatchRequest {
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

// Follow subscribes to a node's record. Brain answers with the current record even if the node is
// followed already: what the first follower received may have been collected with it.
func (s *Session) Follow(nid string) {
	s.mu.Lock()
	s.watched[nid]++
	s.unsent[nid] = struct{}{}
	s.mu.Unlock()
	s.wake()
}

// Unfollow undoes one Follow. The node is followed until every Follow is undone.
func (s *Session) Unfollow(nid string) {
	s.mu.Lock()
	if s.watched[nid]--; s.watched[nid] <= 0 {
		delete(s.watched, nid)
		s.unsent[nid] = struct{}{}
	}
	s.mu.Unlock()
	s.wake()
}

// Followers is the number of Follows of a node that are not undone.
func (s *Session) Followers(nid string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.watched[nid]
}

func (s *Session) wake() {
	select {
	case s.changed <- struct{}{}:
	default:
	}
}
