package tunnel

import (
	"context"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// TestSweepVisitsEveryCall adds and removes calls between the steps of rounds: a call that was in
// the set for a whole round was visited in it.
func TestSweepVisitsEveryCall(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		var s sweeper
		visited := map[*Call]int{} // to the number of visits in this round, or -1 if it was added during the round
		begun := false
		for range rapid.IntRange(1, 300).Draw(rt, "steps") {
			switch rapid.SampledFrom([]string{"add", "add", "remove", "visit"}).Draw(rt, "step") {
			case "add":
				call := &Call{}
				s.add(context.Background(), call)
				visited[call] = -1
			case "remove":
				if len(s.calls) > 0 {
					call := s.calls[rapid.IntRange(0, len(s.calls)-1).Draw(rt, "which")]
					s.remove(call)
					s.remove(call) // has no effect
					delete(visited, call)
				}
			case "visit":
				if s.next == 0 {
					for call, visits := range visited {
						require.False(rt, begun && visits == 0, "a call was skipped")
						visited[call] = 0
					}
					begun = true
				}
				s.beginTick()
				if s.next > 0 {
					s.next--
					call := s.calls[s.next]
					visited[call] = max(visited[call], 0) + 1
				}
			}
			require.Len(rt, s.calls, len(visited))
			for i, call := range s.calls {
				require.Equal(rt, i+1, call.sweepIndex)
			}
		}
	})
}

func TestSweepRoundTakesFewTicks(t *testing.T) {
	for n, ticks := range map[int]int{1: 1, sweepAtOnce: 1, 3 * sweepAtOnce: 3, 20_000: sweepTicks, 65_536: sweepTicks} {
		var s sweeper
		for range n {
			s.add(context.Background(), &Call{})
		}
		took := 0
		for first := true; first || s.next > 0; first = false {
			s.beginTick()
			s.next -= min(s.remaining, s.next)
			took++
		}
		require.Equal(t, ticks, took, "%d calls", n)
	}
}

// sweeping is a sweeper with a table of open calls, outside of a connection.
type sweeping struct {
	sweeper

	mu    sync.Mutex
	table callTable
}

func newSweeping() *sweeping {
	s := &sweeping{table: newCallTable()}
	s.sweeper = sweeper{mu: &s.mu, open: &s.table}
	return s
}

// start opens a call whose context is left to the sweeper.
func (s *sweeping) start(ctx context.Context, call *Call) {
	s.mu.Lock()
	defer s.mu.Unlock()
	call.signals = make(chan signal, 2)
	call.id = s.table.allocate(slot{call: call})
	s.add(ctx, call)
}

// notified reports whether the caller of a call was notified to watch its context.
func notified(call *Call) bool {
	select {
	case <-call.signals:
		return true
	default:
		return false
	}
}

func TestSweeperNotifiesCallersWhoseContextsEnded(t *testing.T) {
	s := newSweeping()
	ctx, cancel := context.WithCancel(t.Context())
	ends, stays := &Call{Synchronous: true}, &Call{Synchronous: true}
	s.start(ctx, ends)
	s.start(t.Context(), stays)
	_, empty := s.tick(nil)
	require.False(t, empty)
	require.False(t, notified(ends))
	cancel()
	s.tick(nil)
	require.True(t, notified(ends))
	require.False(t, notified(stays))
	s.tick(nil)
	require.False(t, notified(ends), "it is notified once")
}

// TestSweeperChecksACallABoundedNumberOfTimes: afterwards its caller watches the context itself.
func TestSweeperChecksACallABoundedNumberOfTimes(t *testing.T) {
	s := newSweeping()
	sync, async := &Call{Synchronous: true}, &Call{}
	watched := 0
	async.WatchContext = func() {
		require.True(t, s.mu.TryLock(), "it is called without the lock")
		s.mu.Unlock()
		watched++
	}
	s.start(t.Context(), sync)
	s.start(t.Context(), async)
	for range maxChecks {
		_, empty := s.tick(nil)
		require.False(t, empty)
	}
	require.False(t, notified(sync))
	require.Zero(t, watched)
	_, empty := s.tick(nil)
	require.True(t, empty)
	require.True(t, notified(sync))
	require.Equal(t, 1, watched)
}

// TestSweeperLeavesFinishedCallsAlone: the call ends between its check and the notification.
func TestSweeperLeavesFinishedCallsAlone(t *testing.T) {
	s := newSweeping()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	call := &Call{Synchronous: true}
	s.start(ctx, call)
	s.mu.Lock()
	s.beginTick()
	checked := s.nextChunk(nil)
	s.remove(call)
	s.table.release(call.id)
	s.mu.Unlock()
	require.Len(t, checked, 1)
	require.Nil(t, s.notifyIfOpen(checked[0]))
	require.False(t, notified(call))
	_, empty := s.tick(nil)
	require.True(t, empty)
}

func TestTickDoesNotAllocate(t *testing.T) {
	s := newSweeping()
	for range 100 {
		s.start(t.Context(), &Call{Synchronous: true})
	}
	scratch := make([]sweptCall, 0, sweepChunk)
	require.Zero(t, testing.AllocsPerRun(20, func() { scratch, _ = s.tick(scratch) }))
}
