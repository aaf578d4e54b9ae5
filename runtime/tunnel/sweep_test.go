package tunnel

import (
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// TestSweepPassesNoneOver adds and removes calls between the steps of rounds: one that was there
// for a whole round was looked at in it.
func TestSweepPassesNoneOver(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		var s sweep
		there := map[*Call]int{} // and how often it was looked at in this round; -1 if it came in the middle
		begun := false
		for range rapid.IntRange(1, 300).Draw(rt, "steps") {
			switch rapid.SampledFrom([]string{"add", "add", "remove", "look"}).Draw(rt, "step") {
			case "add":
				call := &Call{}
				s.add(call)
				there[call] = -1
			case "remove":
				if len(s.calls) > 0 {
					call := s.calls[rapid.IntRange(0, len(s.calls)-1).Draw(rt, "which")]
					s.remove(call)
					s.remove(call) // once more does nothing
					delete(there, call)
				}
			case "look":
				if s.next == 0 {
					for call, looks := range there {
						require.False(rt, begun && looks == 0, "a call was passed over")
						there[call] = 0
					}
					begun = true
				}
				s.tick()
				if s.next > 0 {
					s.next--
					call := s.calls[s.next]
					there[call] = max(there[call], 0) + 1
				}
			}
			require.Len(rt, s.calls, len(there))
			for i, call := range s.calls {
				require.Equal(rt, i+1, call.sweepIndex)
			}
		}
	})
}

func TestSweepLooksAtAllWithinSomeTicks(t *testing.T) {
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

// TestEveryOwnerComesBackToTheLoop: whoever reads a connection, when its caller has left the read
// loop reads on.
func TestEveryOwnerComesBackToTheLoop(t *testing.T) {
	for owner, next := range nextOwner {
		for e, after := range next {
			require.Less(t, int(after), len(nextOwner))
			if readOwner(owner) == ownerLoop && ownerEvent(e) != eventYielded {
				require.Equal(t, ownerLoop, after, "only the read loop itself gives reading away")
			}
		}
		if reads := readOwner(owner); reads == ownerCaller || reads == ownerInterrupted {
			require.Equal(t, ownerLoop, next[eventLeft])
			require.Equal(t, ownerInterrupted, next[eventSwept])
		}
	}
	for _, e := range []ownerEvent{eventBegun, eventSwept} {
		require.Equal(t, ownerLoop, nextOwner[ownerNone][e], "a connection that no goroutine reads does not stay so")
	}
}
