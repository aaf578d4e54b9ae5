package runtime

import (
	"context"
	"log/slog"
	goruntime "runtime"
	"testing"
	"time"
	"weak"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connectinprocess"
	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	brainv1 "github.com/raylink/raylink/gen/raylink/brain/v1"
	"github.com/raylink/raylink/gen/raylink/brain/v1/brainv1connect"
	"github.com/raylink/raylink/runtime/internal/session"
)

// greeter is a Brain that only says hello.
type greeter struct {
	brainv1connect.UnimplementedBrainServiceHandler
}

func (greeter) Hello(context.Context, *brainv1.HelloRequest) (*brainv1.HelloResponse, error) {
	return &brainv1.HelloResponse{}, nil
}

// newHostWithSession is a host whose session has not begun.
func newHostWithSession(t *testing.T) *Host {
	t.Helper()
	server := connect.NewServer()
	brainv1connect.RegisterBrainServiceHandler(server, greeter{})
	h := &Host{remotes: make(map[string]weak.Pointer[remote]), log: slog.New(slog.DiscardHandler)}
	var err error
	h.session, err = session.New(t.Context(), session.Config{
		Host: sessionHost{h}, Brain: brainv1connect.NewBrainServiceClient(connect.NewClient(connectinprocess.New(server))),
	})
	require.NoError(t, err)
	return h
}

// The watch of a handle's node must not end with an earlier handle of the same node, whose cleanup
// runs at a time of the collector's choice.
func TestNodeIsFollowedAfterAnEarlierHandleWasCollected(t *testing.T) {
	h := newHostWithSession(t)
	nid := uuid.NewString()
	use := func() { h.remote(nid).subscribe() }
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
		next.subscribe()
		require.Eventually(t, func() bool { return h.session.Followers(nid) <= 1 }, time.Minute, time.Microsecond)
		require.Equal(t, 1, h.session.Followers(nid), "round %d", round)
		require.Same(t, next, h.remote(nid))
		goruntime.KeepAlive(next)
	}
	// And with the last handle the watch ends.
	require.Eventually(t, func() bool {
		goruntime.GC()
		return h.session.Followers(nid) == 0
	}, time.Minute, time.Microsecond)
}
