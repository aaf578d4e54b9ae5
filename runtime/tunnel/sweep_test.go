package tunnel

import (
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// TestSweepVisitsEveryCall adds and removes calls between the steps of rounds: a call that was in
// the set for a whole round was visited in it.
func TestSweepVisitsEveryCall(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		var s sweep
		visited := map[*Call]int{} // to the number of visits in this round, or -1 if it was added during the round
		begun := false
		for range rapid.IntRange(1, 300).Draw(rt, "steps") {
			switch rapid.SampledFrom([]string{"add", "add", "remove", "visit"}).Draw(rt, "step") {
			case "add":
				call := &Call{}
				s.add(call)
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
				s.tick()
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
		var s sweep
		for range n {
			s.add(&Call{})
		}
		took := 0
		for first := true; first || s.next > 0; first = false {
			s.tick()
			s.next -= min(s.remaining, s.next)
			took++
		}
		require.Equal(t, ticks, took, "%d calls", n)
	}
}

// TestOwnershipReturnsToReadLoop: after the caller that reads has left, the read loop reads again.
func TestOwnershipReturnsToReadLoop(t *testing.T) {
	for owner, next := range nextOwner {
		for e, after := range next {
			require.Less(t, int(after), len(nextOwner))
			if readOwner(owner) == ownerLoop && ownerEvent(e) != eventYielded {
				require.Equal(t, ownerLoop, after, "only the read loop itself yields")
			}
		}
		if reads := readOwner(owner); reads == ownerCaller || reads == ownerInterrupted {
			require.Equal(t, ownerLoop, next[eventLeft])
			require.Equal(t, ownerInterrupted, next[eventSwept])
		}
	}
	for _, e := range []ownerEvent{eventBegun, eventSwept} {
		require.Equal(t, ownerLoop, nextOwner[ownerNone][e], "the read loop must resume")
	}
}
