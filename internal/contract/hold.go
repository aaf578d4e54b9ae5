package contract

import (
	"context"
	"testing"
	"time"

	"connectrpc.com/connect/v2"
	"github.com/stretchr/testify/require"

	contractv1 "github.com/raylink/raylink/internal/contract/gen/contract/v1"
	"github.com/raylink/raylink/internal/contract/gen/contract/v1/contractv1raylink"
	raylink "github.com/raylink/raylink/runtime"
)

// holdAnswer is the action of calls of Block whose answers are held until the call of Release.
const holdAnswer = "hold answer"

// failsHeld is the name that Release releases with an error.
const failsHeld = "held in vain"

func mayHold(ctx context.Context, h *raylink.Hold) bool {
	return raylink.CallFrom(ctx).Metadata().Get(actionKey) == holdAnswer && raylink.NodeFrom(ctx).HoldAnswer(ctx, h)
}

// heldCalls are calls whose answers can be held.
func heldCalls(p *contractv1raylink.Probe) map[string]func(context.Context, string) error {
	sync := func(ctx context.Context, name string) error {
		_, err := p.Block(ctx, &contractv1.BlockRequest{Name: name})
		return err
	}
	return map[string]func(context.Context, string) error{
		"sync":           sync, // on its caller's goroutine, where that is possible
		"a quick method": sync, // on the goroutine that reads the connection, if it is quick
		"async": func(ctx context.Context, name string) error {
			_, err := p.BlockAsync(ctx, &contractv1.BlockRequest{Name: name}).Get(context.WithoutCancel(ctx))
			return err
		},
		"concurrent": func(ctx context.Context, name string) error {
			_, err := p.BlockBeside(ctx, &contractv1.BlockRequest{Name: name})
			return err
		},
	}
}

// makeQuick makes Block quick enough to run on the goroutine that reads the connection.
func makeQuick(t *testing.T, p *contractv1raylink.Probe) {
	t.Helper()
	ctx := patient(t)
	_, err := p.Release(ctx, &contractv1.ReleaseRequest{Name: "quick"})
	require.NoError(t, err)
	for range 100 {
		_, err := p.Block(ctx, &contractv1.BlockRequest{Name: "quick"})
		require.NoError(t, err)
	}
}

// testHold has answers be held while later calls of the node get turns, and released.
func testHold(t *testing.T, way Way, p Peer) {
	ctx := patient(t)
	for name := range heldCalls(p.Probe) {
		for held, code := range map[string]connect.Code{"held": 0, failsHeld: connect.CodeDataLoss} {
			t.Run(name+", "+held, func(t *testing.T) {
				p := way.Open(t)
				later := p.Probe
				if way.Foreign { // its handle sends its next call when the last one has returned
					later = p.Near
				}
				if name == "a quick method" {
					makeQuick(t, p.Probe)
				}
				over := make(chan error, 1)
				go func() { over <- heldCalls(p.Probe)[name](raylink.WithMetadata(ctx, actionKey, holdAnswer), held) }()
				eventually(t, p.Probe, "it did not begin", blocked(held))
				for range 3 {
					require.NoError(t, takesTurn(ctx, p.Probe, later), "the turn was not passed on")
				}
				require.Empty(t, over, "the answer was not held")
				_, err := p.Release(ctx, &contractv1.ReleaseRequest{Name: held})
				require.NoError(t, err)
				if err := <-over; code != 0 {
					require.Equal(t, code, connect.CodeOf(err), "%v", err)
					require.ErrorContains(t, err, failsHeld)
				} else {
					require.NoError(t, err)
				}
				require.NoError(t, takesTurn(ctx, p.Probe, later))
			})
		}
	}
}

// testHeldEnds has the contexts of callers end while their answers are held. The node forgets such
// calls: they do not count towards its bounds.
func testHeldEnds(t *testing.T, way Way, p *contractv1raylink.Probe) {
	for name, call := range heldCalls(p) {
		t.Run(name, func(t *testing.T) {
			if name == "a quick method" {
				makeQuick(t, p)
			}
			ctx, cancel := context.WithCancel(raylink.WithMetadata(t.Context(), actionKey, holdAnswer))
			over := make(chan error, 1)
			go func() { over <- call(ctx, name) }()
			eventually(t, p, "it did not begin", blocked(name))
			cancel()
			err := <-over
			require.Equal(t, connect.CodeCanceled, connect.CodeOf(err), "%v", err)
			ctx, cancel = context.WithTimeout(raylink.WithMetadata(t.Context(), actionKey, holdAnswer), 100*time.Millisecond)
			defer cancel()
			err = call(ctx, name)
			require.Equal(t, connect.CodeDeadlineExceeded, connect.CodeOf(err), "%v", err)
			require.NotContains(t, err.Error(), "has not run")
		})
	}
	if way.Foreign {
		return // the calls of a handle are sent one by one
	}
	for range 4 { // max_pending is 64
		ctx, cancel := context.WithCancel(raylink.WithMetadata(patient(t), actionKey, holdAnswer))
		futures := make([]*raylink.Future[*contractv1.BlockResponse], 60)
		begun := func() (n int) {
			log, err := p.Log(t.Context(), nil)
			require.NoError(t, err)
			for _, name := range log.GetBlocked() {
				if name == "many" {
					n++
				}
			}
			return n
		}
		before := begun()
		for i := range futures {
			futures[i] = p.BlockAsync(ctx, &contractv1.BlockRequest{Name: "many"})
		}
		eventually(t, p, "they did not begin", func(*contractv1.LogResponse) bool { return begun() == before+len(futures) })
		cancel()
		for _, f := range futures {
			_, err := f.Get(t.Context())
			require.Equal(t, connect.CodeCanceled, connect.CodeOf(err), "%v", err)
		}
	}
	_, err := p.Add(patient(t), nil)
	require.NoError(t, err)
}
