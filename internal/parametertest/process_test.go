package parametertest

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/raylink/raylink/internal/proctest"
)

// What a reader holds stays as it is, however many versions follow. If the reader is killed, it is
// freed.
func TestVersionsOfKilledReaderAreFreed(t *testing.T) {
	for _, machine := range []string{home, "one"} {
		t.Run(machine, func(t *testing.T) {
			s := newSystem(t)
			pusher := s.machine(home)
			officer := s.machine(machine)
			reader := s.machine(machine)
			var id uint64
			push := func(token uint64) {
				id = <-s.push(pusher, order{Tag: "w", Token: token, Size: 1 << 20})
				require.NotZero(t, id)
				officer.Eventually(proctest.Patience, order{Do: "id", Tag: "w"}, func(a answer) bool { return a.Version >= id }, "a version does not arrive")
			}
			push(1)
			reader.Eventually(proctest.Patience, order{Do: "pull", Tag: "w", Hold: "first"}, func(a answer) bool { return a.Version == 1 }, "no version")
			for token := uint64(2); token < 10; token++ {
				push(token)
			}
			a := reader.Must(order{Do: "check", Hold: "first"})
			require.Equal(t, uint64(1), a.Token)
			reader.Must(order{Do: "pull", Tag: "w", Hold: "last"})
			reader.Kill()
			push(10)
			s.awaitFiles(machine, 5*time.Second, "what a dead reader held is not freed", few)
			a = officer.Must(order{Do: "pull", Tag: "w"})
			require.Equal(t, id, a.Version)
			require.Equal(t, uint64(10), a.Token)
		})
	}
}

// A pusher is killed while its version is written or sent.
func TestDraftOfKilledPusherIsReclaimed(t *testing.T) {
	for _, machine := range []string{home, "one"} {
		t.Run(machine, func(t *testing.T) {
			r := proctest.Random(t, *seed)
			s := newSystem(t)
			other := s.machine(home)
			witness := s.machine(machine)
			first := <-s.push(other, order{Tag: "w", Token: 1, Size: 1000})
			require.NotZero(t, first)
			for round := range 4 {
				victim := s.machine(machine)
				// What it pushes may be accepted just before its death.
				answered := victim.Begin(order{Do: "push", Tag: "w", Token: uint64(100 + round), Size: 4 * large})
				if round%2 == 0 {
					begin := time.Now()
					for !hasLarge(s.files(machine), ".draft") && time.Since(begin) < 2*time.Second {
						proctest.Pause(time.Millisecond)
					}
				}
				proctest.Pause(time.Duration(r.IntN(60)) * time.Millisecond)
				victim.Kill()
				select {
				case a := <-answered:
					require.Empty(t, a.Error, "a large push")
				default:
				}
				id := <-s.push(other, order{Tag: "w", Token: uint64(10 + round), Size: 1000})
				require.NotZero(t, id, "a push after that of a dead pusher fails: %v", s.history.failures)
				for _, p := range []*process{other, witness} {
					a := p.Eventually(proctest.Patience, order{Do: "pull", Tag: "w"}, func(a answer) bool { return a.Version >= id }, "a version does not arrive")
					require.Equal(t, id, a.Version)
					require.Equal(t, uint64(10+round), a.Token)
				}
			}
			// A draft that was never published is gone, and what was accepted is overtaken.
			for token := uint64(200); token < 200+heldVersions+2; token++ {
				id := <-s.push(other, order{Tag: "w", Token: token, Size: 1000})
				witness.Eventually(proctest.Patience, order{Do: "id", Tag: "w"}, func(a answer) bool { return a.Version >= id }, "a version does not arrive")
			}
			for _, name := range []string{home, machine} {
				s.awaitFiles(name, 5*time.Second, "a dead pusher's draft is left", func(files map[string]int64) bool {
					return few(files) && !hasLarge(files, "")
				})
			}
		})
	}
}

// A pusher that is stopped in the middle of a push holds up no other, nor those that read.
func TestStoppedPusherDoesNotHoldUpOthers(t *testing.T) {
	for _, machine := range []string{home, "one"} {
		t.Run(machine, func(t *testing.T) {
			r := proctest.Random(t, *seed)
			s := newSystem(t)
			other := s.machine(home)
			witness := s.machine(machine)
			for round := range 3 {
				victim := s.machine(machine)
				answered := victim.Begin(order{Do: "push", Tag: "w", Token: uint64(100 + round), Size: 4 * large})
				proctest.Pause(time.Duration(r.IntN(200)) * time.Millisecond)
				victim.Stop()
				begin := time.Now()
				id := <-s.push(other, order{Tag: "w", Token: uint64(10 + round), Size: 1 << 20})
				require.NotZero(t, id, "%v", s.history.failures)
				require.Less(t, time.Since(begin), chunkTimeout+time.Second+slow, "a stopped pusher holds up another")
				witness.Eventually(chunkTimeout+time.Second+slow, order{Do: "pull", Tag: "w"}, func(a answer) bool { return a.Version >= id }, "a stopped pusher holds up readers")
				victim.Resume()
				a := <-answered
				t.Logf("round %d: the push of the stopped process took %d ms: version %d %s", round, a.Milliseconds, a.Version, a.Error)
				require.Empty(t, a.Error)
				s.history.is(victim.Name, "w", a.Version, uint64(100+round))
				victim.End()
			}
			for _, name := range []string{home, machine} {
				s.awaitFiles(name, 5*time.Second, "files are left", few)
			}
		})
	}
}

// hasLarge reports whether there is a file of a pusher that is killed.
func hasLarge(files map[string]int64, ext string) bool {
	for path, n := range files {
		if strings.HasSuffix(path, ext) && n >= 4*large {
			return true
		}
	}
	return false
}
