package parametertest

import (
	"fmt"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/raylink/raylink/internal/proctest"
)

func TestPusherReadsItsOwnWriteFromAnotherMachine(t *testing.T) {
	s := newSystem(t)
	p := s.machine("one")
	p.Eventually(proctest.Patience, order{Do: "officer"}, func(a answer) bool { return a.PID == p.PID() }, "the machine has no officer")
	sizes := []int{100, 3 << 20, 100 << 10}
	begin := time.Now() // a client may look for its machine's officer now and then only
	for i := 0; i < 30 || time.Since(begin) < time.Second; i++ {
		// Every third push is the tag's first.
		tag, token := fmt.Sprint("tag/", i/3), uint64(i+1)
		pushed := p.Must(order{Do: "push", Tag: tag, Token: token, Size: sizes[i%len(sizes)]})
		require.Equal(t, uint64(i%3+1), pushed.Version)
		a := p.Must(order{Do: "pull", Tag: tag})
		require.Equal(t, pushed.Version, a.Version, "push %d", i)
		require.Equal(t, token, a.Token)
		a = p.Must(order{Do: "id", Tag: tag})
		require.Equal(t, pushed.Version, a.Version, "push %d", i)
	}
}

// The captain is stopped, or dead with nothing that would restart it.
func TestReadersGoOnWhileTheCaptainIsAway(t *testing.T) {
	for _, how := range []string{"stopped", "dead"} {
		t.Run(how, func(t *testing.T) {
			s := newSystem(t)
			all := s.machines(home, "one")
			id := <-s.push(all[0], order{Tag: "w", Token: 1, Size: 1 << 20})
			require.NotZero(t, id)
			for _, p := range all {
				p.Must(order{Do: "follow", Tag: "w"})
			}
			s.history.await(proctest.Patience, "the followers do not see the version", s.history.haveSeen("w", id, all...))
			captain := all[0].captain()
			if how == "stopped" {
				proctest.Stop(t, captain)
				t.Cleanup(func() { _ = syscall.Kill(captain, syscall.SIGCONT) })
			} else {
				s.brain.Stop()
				t.Cleanup(func() { _ = syscall.Kill(s.brain.PID(), syscall.SIGCONT) })
				proctest.Kill(t, captain)
			}
			begin := time.Now()
			var waiting []<-chan answer
			for _, p := range all {
				waiting = append(waiting, p.Begin(order{Do: "push", Tag: "w", Token: 2, Size: 1000, Milliseconds: 1000}))
			}
			for time.Since(begin) < 2500*time.Millisecond {
				for _, p := range all {
					for _, do := range []string{"id", "pull"} {
						a := p.Do(order{Do: do, Tag: "w", Milliseconds: 500})
						require.Empty(t, a.Error, "%s: %s while the captain is away", p.Name, do)
						require.Equal(t, id, a.Version)
						require.Less(t, a.Milliseconds, int64(400), "%s: %s waits for the captain", p.Name, do)
					}
				}
			}
			for i, c := range waiting {
				a := <-c
				assert.Equal(t, "deadline_exceeded", a.Code, "%s: a push waits for the captain until its context ends: %s", all[i].Name, a.Error)
				assert.GreaterOrEqual(t, a.Milliseconds, int64(900), "it has waited")
				assert.Less(t, a.Milliseconds, int64(2000), "it has waited")
			}
			for _, p := range all {
				s.history.await(5*time.Second, "the followers do not see the captain's absence", func() bool {
					return s.history.tag("w").staleness[p.Name].Milliseconds >= 2000
				})
			}
			// A push that has time succeeds when the captain is back.
			late := s.push(all[1], order{Tag: "w", Token: 3, Size: 1000})
			if how == "stopped" {
				require.NoError(t, syscall.Kill(captain, syscall.SIGCONT))
			} else {
				s.brain.Resume()
			}
			next := <-late
			require.Greater(t, next, id, "%v", s.history.failures)
			s.history.await(proctest.Patience, "the followers do not see the next version", s.history.haveSeen("w", next, all...))
			for _, p := range all {
				s.history.await(5*time.Second, "the followers are stale though the captain is back", func() bool {
					a := s.history.tag("w").staleness[p.Name]
					return a.Lag == 0 && a.Milliseconds < 1000
				})
			}
		})
	}
}

func TestUsersCaptainHasOfficersOnOtherMachines(t *testing.T) {
	s := newSystem(t)
	all := s.machines(home, "one", "two")
	path := all[1].Must(order{Do: "create"}).Path // below a process of another machine
	for _, p := range all {
		p.Must(order{Do: "open", Captain: path})
	}
	for _, p := range all {
		p.Eventually(5*time.Second, order{Do: "officer", Captain: path}, func(a answer) bool { return a.Error == "" && a.PID != 0 }, "no officer")
	}
	pushed := all[0].Must(order{Do: "push", Captain: path, Tag: "w", Token: 7, Size: 5 << 20})
	for _, p := range all {
		a := p.Eventually(5*time.Second, order{Do: "pull", Captain: path, Tag: "w"}, func(a answer) bool { return a.Version == pushed.Version }, "no version")
		require.Equal(t, uint64(7), a.Token)
		// The system's captain does not know the tag.
		require.NotEmpty(t, p.Do(order{Do: "pull", Tag: "w"}).Error)
	}
}

// TorchRL's receivers hang when their learner is dead (pytorch/rl#4005).
func TestFollowerOfEndedCaptainFails(t *testing.T) {
	s := newSystem(t)
	all := s.machines(home, "one")
	path := all[0].Must(order{Do: "create"}).Path
	all[0].Must(order{Do: "push", Captain: path, Tag: "w", Token: 1, Size: 1000})
	for _, p := range all {
		p.Must(order{Do: "follow", Captain: path, Tag: "w"})
	}
	s.history.await(proctest.Patience, "the followers do not see the version", s.history.haveSeen("w", 1, all...))
	all[0].Must(order{Do: "end", Captain: path})
	for _, p := range all {
		s.history.await(10*time.Second, "a follower does not notice that its captain has ended for good", func() bool {
			return s.history.troubled(p.Name)
		})
		a := p.Do(order{Do: "push", Captain: path, Tag: "w", Token: 2, Size: 1000})
		assert.NotEmpty(t, a.Error, "%s: a push to a captain that has ended", p.Name)
		assert.Less(t, a.Milliseconds, int64(10000), "%s: a push to a captain that has ended hangs", p.Name)
	}
}

// RLlib sends all policies where one has changed (ray#29973), and the clients of acme pull without
// asking whether there is anything new.
func TestOnlyNewsAreSent(t *testing.T) {
	s := newSystem(t)
	pusher := s.machine(home)
	for _, name := range []string{home, "one"} {
		t.Run(name, func(t *testing.T) {
			p := s.machine(name)
			const size = 16 << 20
			big, small := name+"/big", name+"/small"
			pushed := pusher.Must(order{Do: "push", Tag: big, Token: 1, Size: size})
			pusher.Must(order{Do: "push", Tag: small, Token: 1, Size: 1000})
			p.Eventually(proctest.Patience, order{Do: "pull", Tag: big}, func(a answer) bool { return a.Version == pushed.Version }, "no version")
			before := p.Must(order{Do: "usage"}).Received
			for token := range uint64(20) {
				pusher.Must(order{Do: "push", Tag: small, Token: token + 2, Size: 1000})
				p.Eventually(proctest.Patience, order{Do: "pull", Tag: small}, func(a answer) bool { return a.Token == token+2 }, "no version")
			}
			after := p.Must(order{Do: "usage"}).Received
			require.Less(t, after-before, int64(size/4), "pushes of one tag have sent another")
			for range 100 {
				a := p.Must(order{Do: "pull", Tag: big})
				require.Equal(t, pushed.Version, a.Version)
				a = p.Must(order{Do: "pull if newer", Tag: big, Have: pushed.Version})
				require.False(t, a.Newer)
			}
			last := p.Must(order{Do: "usage"}).Received
			require.Less(t, last-after, int64(size/4), "pulls without news have sent the version again")
		})
	}
}
