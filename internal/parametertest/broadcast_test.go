package parametertest

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/raylink/raylink/internal/proctest"
)

const (
	// chunkTimeout is how long a machine that is dead or stopped may hold up those behind it.
	chunkTimeout = 2 * time.Second
	// large is the size of a broadcast's parameters.
	large = 32 << 20
	// heldVersions is the default of CaptainConfig.held_versions.
	heldVersions = 2
)

// names returns the names of machines.
func names(count int) []string {
	all := make([]string, count)
	for i := range all {
		all[i] = fmt.Sprint("m", i+1)
	}
	return all
}

// haveSeen reports whether all processes have seen a version of a tag. The caller holds mu.
func (h *history) haveSeen(tag string, id uint64, all ...*process) func() bool {
	return func() bool {
		for _, p := range all {
			if h.tag(tag).seen[p.Name] < id {
				return false
			}
		}
		return true
	}
}

// few reports whether a tag's files are no more than those of the newest version, of held ones, and
// of one that is being written.
func few(files map[string]int64) bool { return len(files) <= 1+heldVersions+1 }

// pushed begins a push of a process, whose answer is entered into the history.
func (s *system) push(p *process, o order) <-chan uint64 {
	c := make(chan uint64, 1)
	o.Do = "push"
	answered := p.Begin(o)
	go func() {
		a := <-answered
		a.Event, a.Tag, a.Token = pushedEvent, o.Tag, o.Token
		if a.Error != "" {
			a.Event = failedEvent
		}
		s.history.add(p.Name, a)
		c <- a.Version
	}()
	return c
}

// Of eight machines, one is killed and two are stopped in the middle of a broadcast.
func TestBroadcastGoesOnWithoutDeadAndStoppedMachines(t *testing.T) {
	r := proctest.Random(t, *seed)
	s := newSystem(t)
	pusher := s.machine(home)
	all := s.machines(names(8)...)
	for _, p := range all {
		p.Must(order{Do: "read", Tag: "w"})
	}
	token := uint64(0)
	broadcast := func() <-chan uint64 {
		token++
		return s.push(pusher, order{Tag: "w", Token: token, Size: large})
	}
	var usual time.Duration
	for range 2 { // the second has warm connections
		begin := time.Now()
		id := <-broadcast()
		require.NotZero(t, id)
		s.history.await(proctest.Patience, "a broadcast to eight does not end", s.history.haveSeen("w", id, all...))
		usual = time.Since(begin)
	}
	t.Logf("a broadcast of %d MiB to %d machines takes %v", large>>20, len(all), usual)
	limit := 3*usual + chunkTimeout + time.Second + slow

	for round := range 3 {
		r.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
		dead, stopped, rest := all[0], all[1:3], all[3:]
		begin := time.Now()
		answered := broadcast()
		proctest.Pause(time.Duration(r.Int64N(int64(usual))))
		dead.Kill()
		for _, p := range stopped {
			p.Stop()
		}
		var id uint64
		select {
		case id = <-answered:
		case <-time.After(limit):
			require.Fail(t, "a push is held up by others' machines", "more than %v", limit)
		}
		require.NotZero(t, id, "round %d", round)
		s.history.await(limit, "machines are held up by dead or stopped ones", s.history.haveSeen("w", id, rest...))
		t.Logf("round %d: five of eight have the version after %v", round, time.Since(begin))

		// The next one begins while they are still stopped, and they are continued in its middle.
		answered = broadcast()
		proctest.Pause(time.Duration(r.Int64N(int64(usual))))
		for _, p := range stopped {
			p.Resume()
		}
		id = <-answered
		require.NotZero(t, id)
		begin = time.Now()
		s.history.await(limit+2*usual, "a machine that was continued does not catch up", s.history.haveSeen("w", id, all[1:]...))
		t.Logf("round %d: seven of eight have the next one after %v", round, time.Since(begin))

		again := s.machine(dead.machine)
		again.Must(order{Do: "read", Tag: "w"})
		s.history.await(limit+proctest.Patience, "a machine that came back does not catch up", s.history.haveSeen("w", id, again))
		all[0] = again
		for _, name := range names(8) {
			s.awaitFiles(name, 5*time.Second, "files are left", few)
		}
	}

	all[0].Kill()
	answer := pusher.Eventually(5*time.Second, order{Do: "officers"}, func(a answer) bool {
		return a.Error != "" || len(a.Machines) == len(all) // with the captain's machine
	}, "a dead machine's officer is still listed")
	assert.Empty(t, answer.Error)
	assert.NotContains(t, answer.Machines, all[0].machine)
}

// A push waits for all machines, of which one is stopped.
func TestPushNamesTheMachinesThatLackIt(t *testing.T) {
	s := newSystem(t)
	pusher := s.machine(home)
	all := s.machines(names(3)...)
	for _, p := range all {
		p.Eventually(proctest.Patience, order{Do: "officer"}, func(a answer) bool { return a.PID == p.PID() }, "no officer")
	}
	a := pusher.Must(order{Do: "push", Tag: "w", Token: 1, Size: 1 << 20, Wait: "all"})
	for _, p := range all {
		require.Equal(t, a.Version, p.Must(order{Do: "id", Tag: "w", Milliseconds: 100}).Version, "a push that waits for all returned before %s had it", p.Name)
	}
	all[1].Stop()
	begin := time.Now()
	lacking := pusher.Do(order{Do: "push", Tag: "w", Token: 2, Size: 1 << 20, Wait: "all", Milliseconds: 2000})
	took := time.Since(begin)
	all[1].Resume()
	require.Less(t, took, 3*time.Second)
	require.NotEmpty(t, lacking.Error, "a push that waits for all returned without one")
	require.Equal(t, []string{all[1].machine}, lacking.Machines, "%s", lacking.Error)
	require.Equal(t, a.Version+1, lacking.Version, "the version was pushed")
	require.Contains(t, lacking.Error, all[1].machine)
	for _, p := range all {
		p.Eventually(proctest.Patience, order{Do: "pull", Tag: "w"}, func(a answer) bool { return a.Version == lacking.Version }, "the version does not arrive")
	}
	// More than half have it.
	all[2].Stop()
	quorum := pusher.Do(order{Do: "push", Tag: "w", Token: 3, Size: 1 << 20, Wait: "quorum"})
	all[2].Resume()
	require.Empty(t, quorum.Error)
}

// A machine's officer dies, or ends, with its process. Another process of the machine takes over,
// with the files.
func TestSecondProcessTakesOver(t *testing.T) {
	r := proctest.Random(t, *seed)
	s := newSystem(t)
	pusher := s.machine(home)
	first := s.machine("one")
	first.Must(order{Do: "read", Tag: "w"})
	token := uint64(0)
	broadcast := func() <-chan uint64 {
		token++
		return s.push(pusher, order{Tag: "w", Token: token, Size: large})
	}
	id := <-broadcast()
	require.NotZero(t, id)
	s.history.await(proctest.Patience, "a machine does not see a version", s.history.haveSeen("w", id, first))
	first.Eventually(proctest.Patience, order{Do: "officer"}, func(a answer) bool { return a.PID == first.PID() }, "the first process has no officer")
	for round := range 4 {
		second := s.machine("one")
		second.Must(order{Do: "read", Tag: "w"})
		s.history.await(proctest.Patience, "the second process does not see what the first has", s.history.haveSeen("w", id, second))
		answered := broadcast()
		proctest.Pause(time.Duration(r.IntN(30)) * time.Millisecond)
		begin := time.Now()
		if round%2 == 0 {
			first.Kill()
		} else {
			first.End()
		}
		id = <-answered
		require.NotZero(t, id)
		s.history.await(2*time.Second+slow, "the second process has not taken over within two seconds", s.history.haveSeen("w", id, second))
		t.Logf("round %d: the second process has the version after %v", round, time.Since(begin))
		s.awaitFiles("one", 5*time.Second, "the dead process's files are left", few)
		second.Eventually(5*time.Second, order{Do: "officer"}, func(a answer) bool { return a.PID == second.PID() }, "the captain does not know the next officer")
		first = second
	}
}
