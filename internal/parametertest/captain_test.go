package parametertest

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/raylink/raylink/internal/proctest"
)

// The captain is killed at random moments, under pushes to three tags from three machines. Readers
// on two machines follow all the time.
func TestAcknowledgedPushesSurviveKillsOfTheCaptain(t *testing.T) {
	r := proctest.Random(t, *seed)
	s := newSystem(t)
	all := s.machines(home, "one", "two")
	tags := []string{"policy", "value", "critics/7"}
	sizes := [][]int{{1000}, {300 << 10, 100, 70 << 10}, {2 << 20, 3 << 20}}
	for _, p := range all[1:] {
		for _, tag := range tags {
			p.Must(order{Do: "read", Tag: tag})
		}
	}
	// Pushers are processes of their own, so that the readers go on when they are stopped.
	pushers := s.machines(home, "one", "two")
	for round := range *kills {
		for i, p := range pushers {
			p.Must(order{Do: "churn", Tag: tags[i], Token: uint64(round*len(tags) + i + 1), Sizes: sizes[i]})
		}
		// least waits until each tag has so many more pushes.
		least := func(more int, what string) {
			before := make(map[string]int)
			s.history.mu.Lock()
			for _, tag := range tags {
				before[tag] = s.history.tag(tag).pushes
			}
			s.history.mu.Unlock()
			s.history.await(proctest.Patience, what, func() bool {
				for _, tag := range tags {
					if s.history.tag(tag).pushes < before[tag]+more {
						return false
					}
				}
				return true
			})
		}
		least(1+round%3, "pushes do not succeed")
		proctest.Pause(time.Duration(r.IntN(40)) * time.Millisecond)
		victim := pushers[0].captain()
		if round%2 == 0 { // what is under way while the captain is away succeeds later
			proctest.Kill(t, victim)
			least(2, "pushes do not succeed after the captain's restart")
			for _, p := range pushers {
				p.Must(order{Do: "stop"})
			}
		} else { // nothing is pushed any more: the next life has only what was acknowledged
			proctest.Kill(t, victim)
			for _, p := range pushers {
				p.Must(order{Do: "stop"})
			}
		}
		for _, tag := range tags {
			acknowledged := s.history.acknowledged(tag)
			enough := func(a answer) bool { return a.Error == "" && a.Version >= acknowledged }
			for _, p := range all {
				p.Eventually(proctest.Patience, order{Do: "meta", Tag: tag}, enough, "the captain has lost an acknowledged version")
				a := p.Eventually(proctest.Patience, order{Do: "pull", Tag: tag}, enough, "an acknowledged version is lost")
				s.history.is(p.Name, tag, a.Version, a.Token)
			}
		}
		if t.Failed() {
			return
		}
	}
	s.history.mu.Lock()
	defer s.history.mu.Unlock()
	t.Log(s.history)
	require.Empty(t, s.history.failures, "a push failed instead of waiting for the captain")
}

// The captain dies, and Brain with it or not. Its next life finds its files or those of another
// machine.
func TestAcknowledgedVersionSurvivesTheCaptain(t *testing.T) {
	for _, c := range []struct {
		name     string
		machines []string
		// lost is set if the captain's files are removed, brain if Brain is killed too.
		lost, brain bool
	}{
		{"the captain's machine alone", []string{home}, false, false},
		{"the captain's files lost", []string{home, "one"}, true, false},
		{"Brain killed too", []string{home, "one"}, false, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newSystem(t)
			all := s.machines(c.machines...)
			victim := all[0].captain()
			tags := []string{"policy", "critics/7"}
			pushed := make(map[string]uint64)
			token := uint64(0)
			for range 3 {
				for _, tag := range tags {
					token++
					pushed[tag] = <-s.push(all[0], order{Tag: tag, Token: token, Size: 1 << 20, Wait: "all"})
					require.NotZero(t, pushed[tag], "%v", s.history.failures)
				}
			}
			if c.brain {
				s.brain.Kill()
			} else {
				s.brain.Stop() // the next life waits
			}
			proctest.Kill(t, victim)
			if c.lost {
				require.NotEmpty(t, s.files(home))
				for path := range s.files(home) {
					require.NoError(t, os.RemoveAll(filepath.Dir(filepath.Join(s.data(home), path))))
				}
			}
			if c.brain {
				s.startBrain()
			} else {
				s.brain.Resume()
			}
			if c.lost { // at once, before officers have enlisted
				token++
				next := <-s.push(all[0], order{Tag: tags[0], Token: token, Size: 1000})
				require.Equal(t, pushed[tags[0]]+1, next, "an id was given twice: %v", s.history.failures)
				pushed[tags[0]] = next
			}
			for _, tag := range tags {
				for _, p := range all {
					is := func(a answer) bool { return a.Version == pushed[tag] }
					p.Eventually(proctest.Patience, order{Do: "meta", Tag: tag}, is, "the captain has lost an acknowledged version")
					a := p.Eventually(proctest.Patience, order{Do: "pull", Tag: tag}, is, "an acknowledged version is lost")
					s.history.is(p.Name, tag, a.Version, a.Token)
				}
				token++
				next := <-s.push(all[0], order{Tag: tag, Token: token, Size: 1000})
				require.Equal(t, pushed[tag]+1, next, "%v", s.history.failures)
			}
			all[0].Eventually(proctest.Patience, order{Do: "officers"}, func(a answer) bool {
				return len(a.Machines) == len(c.machines)
			}, "a machine has no officer below the captain's next incarnation")
		})
	}
}
