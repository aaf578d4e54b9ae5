package runtime

import (
	"context"
	"errors"
	"log/slog"
	goruntime "runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"
	"weak"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connectinprocess"
	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/durationpb"

	brainv1 "github.com/raylink/raylink/gen/raylink/brain/v1"
	"github.com/raylink/raylink/gen/raylink/brain/v1/brainv1connect"
	nodev1 "github.com/raylink/raylink/gen/raylink/node/v1"
	"github.com/raylink/raylink/runtime/rundir"
)

// fakeBrain answers the streams of a session as a test wants.
type fakeBrain struct {
	brainv1connect.UnimplementedBrainServiceHandler

	attach func(context.Context, brainv1connect.BrainServiceAttachServerStream) error
	watch  func(context.Context, brainv1connect.BrainServiceWatchServerStream) error
}

func (b *fakeBrain) Attach(ctx context.Context, s brainv1connect.BrainServiceAttachServerStream) error {
	return b.attach(ctx, s)
}

func (b *fakeBrain) Watch(ctx context.Context, s brainv1connect.BrainServiceWatchServerStream) error {
	return b.watch(ctx, s)
}

// newSession is a host that has joined b, and does nothing with it yet.
func newSession(b *fakeBrain, lease time.Duration) *Host {
	server := connect.NewServer()
	brainv1connect.RegisterBrainServiceHandler(server, b)
	h := &Host{
		remotes: make(map[string]weak.Pointer[remote]), log: slog.New(slog.DiscardHandler), options: Options{Logger: slog.New(slog.DiscardHandler)},
		listener: &listener{}, dir: &rundir.Host{}, // what Info describes
	}
	h.listener.host = h
	h.brain = brainv1connect.NewBrainServiceClient(connect.NewClient(connectinprocess.New(server)))
	h.session = &session{
		host: h, hello: &brainv1.HelloResponse{Lease: durationpb.New(lease)},
		watched: make(map[string]int), unsent: make(map[string]struct{}), changed: make(chan struct{}, 1),
		leaving: make(chan struct{}), left: make(chan struct{}),
	}
	return h
}

// The watch of a handle's node must not end with an earlier handle of the same node, whose cleanup
// runs at a time of the collector's choice.
func TestNodeIsFollowedAfterAnEarlierHandleWasCollected(t *testing.T) {
	h := newSession(&fakeBrain{}, time.Second)
	nid := uuid.NewString()
	use := func() { h.remote(nid).follow() }
	for round := range 50 {
		use()
		require.Eventually(t, func() bool {
			goruntime.GC()
			h.mu.Lock()
			defer h.mu.Unlock()
			return h.remotes[nid].Value() == nil
		}, time.Minute, time.Microsecond)
		// From here on the cleanup of the first runs at the same time.
		next := h.remote(nid)
		next.follow()
		require.Eventually(t, func() bool {
			h.session.mu.Lock()
			defer h.session.mu.Unlock()
			return h.session.watched[nid] <= 1
		}, time.Minute, time.Microsecond)
		h.session.mu.Lock()
		followers := h.session.watched[nid]
		h.session.mu.Unlock()
		require.Equal(t, 1, followers, "round %d", round)
		require.Same(t, next, h.remote(nid))
		goruntime.KeepAlive(next)
	}
	// And with the last handle the watch ends.
	require.Eventually(t, func() bool {
		goruntime.GC()
		h.session.mu.Lock()
		defer h.session.mu.Unlock()
		return len(h.session.watched) == 0
	}, time.Minute, time.Microsecond)
	require.Equal(t, []string{nid}, h.session.nextRequest().GetRemove())
}

// A second handle must be sent the record as it stands, though the node was followed already: the
// record that the first one received went with it.
func TestEveryNewHandleAsksForTheRecordAsItStands(t *testing.T) {
	h := newSession(&fakeBrain{}, time.Second)
	h.session.add("n")
	require.Equal(t, []string{"n"}, h.session.nextRequest().GetAdd())
	h.session.add("n")
	h.session.remove("n")
	req := h.session.nextRequest()
	require.Equal(t, []string{"n"}, req.GetAdd())
	require.Empty(t, req.GetRemove())
	h.session.remove("n")
	require.Equal(t, []string{"n"}, h.session.nextRequest().GetRemove())
}

func TestAWatchThatWorkedIsOpenedAgainAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var opened, broken []time.Time
		record := &nodev1.NodeRecord{Nid: "n", Path: "n-0", Revision: 1}
		fake := &fakeBrain{watch: func(_ context.Context, stream brainv1connect.BrainServiceWatchServerStream) error {
			mu.Lock()
			opened = append(opened, time.Now())
			mu.Unlock()
			if _, err := stream.Receive(); err != nil {
				return err
			}
			record.Revision++
			if err := stream.Send(&brainv1.WatchResponse{Nodes: []*nodev1.NodeRecord{record}}); err != nil {
				return err
			}
			mu.Lock()
			broken = append(broken, time.Now())
			mu.Unlock()
			return connect.NewError(connect.CodeUnavailable, "the connection broke")
		}}
		h := newSession(fake, 10*time.Second)
		// Not by h.remote: its cleanup would run outside of the test's bubble.
		r := &remote{host: h, nid: "n", known: &nodev1.NodeRecord{Nid: "n"}, changed: make(chan struct{})}
		h.remotes["n"] = weak.Make(r)
		h.session.add("n")
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		done := make(chan struct{})
		go func() { defer close(done); h.session.watch(ctx) }()
		<-done
		require.Greater(t, len(opened), 100)
		for i := range broken[:len(broken)-1] {
			require.LessOrEqual(t, opened[i+1].Sub(broken[i]), 20*time.Millisecond, "break %d", i)
		}
		require.Equal(t, "n-0", r.record().GetPath())
	})
}

func TestAttemptsToReachBrainAreSpacedByAShareOfTheLease(t *testing.T) {
	for lease, most := range map[time.Duration]time.Duration{
		time.Second:      time.Second / 8,
		10 * time.Second: maxBrainPause,
		time.Hour:        maxBrainPause,
		0:                maxBrainPause,
	} {
		synctest.Test(t, func(t *testing.T) {
			var attempts []time.Time
			refuse := func() error {
				attempts = append(attempts, time.Now())
				return connect.NewError(connect.CodeUnavailable, "away")
			}
			fake := &fakeBrain{
				attach: func(context.Context, brainv1connect.BrainServiceAttachServerStream) error { return refuse() },
				watch:  func(context.Context, brainv1connect.BrainServiceWatchServerStream) error { return refuse() },
			}
			for name, run := range map[string]func(context.Context, *Host){
				"lease": func(ctx context.Context, h *Host) {
					first := make(chan error, 1)
					h.session.attach(ctx, first)
					if err := <-first; err == nil {
						t.Error(errors.New("attached to a Brain that refuses"))
					}
				},
				"watch": func(ctx context.Context, h *Host) { h.session.watch(ctx) },
			} {
				attempts = nil
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				run(ctx, newSession(fake, lease))
				cancel()
				pauses := make(map[time.Duration]struct{})
				for i := range attempts[1:] {
					pause := attempts[i+1].Sub(attempts[i])
					require.LessOrEqual(t, pause, most, name)
					pauses[pause] = struct{}{}
				}
				require.Greater(t, len(pauses), len(attempts)/2, "%s: no jitter", name)
			}
		})
	}
}
