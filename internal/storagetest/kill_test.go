package storagetest

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/raylink/raylink/internal/proctest"
)

const (
	// writers are the writers of a test, and processes the processes that they are in.
	writers, processes = 16, 4
	// batchSize is how many acknowledged writes a test waits for.
	batchSize = 200
)

// load is a system with writers, readers and watchers.
type load struct {
	*system

	// writing and watching are workers: those that write and read, and those that read and watch.
	writing, watching []*process
	round             int
	// before is what the storage's process has before the load.
	before usage
}

// newLoad starts readers and watchers.
func newLoad(t *testing.T, durability string) *load {
	t.Helper()
	s := newSystem(t, durability)
	l := &load{system: s, writing: s.workers(processes), watching: s.workers(2)}
	l.before = s.usage(l.watching[0].storage())
	for _, p := range append(l.writing, l.watching...) {
		p.Must(order{Do: "read"})
	}
	for _, p := range l.watching {
		for _, prefix := range []string{"", "batch/", "counter/1"} {
			p.Must(order{Do: "watch", Key: prefix})
			p.Must(order{Do: "watch by the client", Key: prefix})
		}
	}
	return l
}

// write starts the writers.
func (l *load) write() {
	l.t.Helper()
	l.round++
	for i, p := range l.writing {
		o := order{Do: "write", Round: l.round}
		for n := range writers / processes {
			o.Writers = append(o.Writers, i*writers/processes+n)
		}
		p.Must(o)
	}
}

// quiet ends the writers, and waits for their last answers.
func (l *load) quiet() {
	l.t.Helper()
	for _, p := range l.writing {
		p.Must(order{Do: "stop writers"})
	}
}

// finish ends the writers, and checks everything.
func (l *load) finish() {
	l.t.Helper()
	l.quiet()
	reader := l.watching[0]
	a := reader.Eventually(proctest.Patience, order{Do: "state"}, func(a answer) bool { return a.Error == "" }, "the storage cannot be read")
	l.history.finish(a.Read.Entries, a.Last)
	for _, p := range append(l.writing, l.watching...) {
		p.Must(order{Do: "stop others"})
	}
	l.checkUsage()
}

// The storage is killed at random moments, under load by sixteen writers. After every other kill,
// the writers go on while it is away.
func TestAcknowledgedWritesSurviveKillsOfTheStorage(t *testing.T) {
	t.Parallel()
	for _, durability := range []string{"async", "sync"} {
		t.Run(durability, func(t *testing.T) {
			t.Parallel() // mostly, the tests wait for the storage to start again
			r := proctest.Random(t, *seed)
			l := newLoad(t, durability)
			for round := range *kills {
				if round%2 == 0 {
					l.write()
				}
				l.history.awaitMore(batchSize, "writes do not succeed")
				proctest.Pause(time.Duration(r.IntN(50)) * time.Millisecond)
				victim := l.writing[0].storage()
				if round%4 == 3 { // what was sent meanwhile is lost with it
					proctest.Stop(t, victim)
					proctest.Pause(time.Duration(r.IntN(50)) * time.Millisecond)
				}
				proctest.Kill(t, victim)
				if round%2 == 1 {
					l.quiet()
				}
			}
			l.quiet() // a writer makes one call at a time
			l.write()
			l.history.awaitMore(batchSize, "writes do not succeed after the last kill")
			proctest.Kill(t, l.writing[0].storage())
			l.finish()
		})
	}
}

// Brain is killed, alone or with the storage, and started again.
func TestAcknowledgedWritesSurviveBrain(t *testing.T) {
	for _, alone := range []bool{true, false} {
		t.Run(fmt.Sprintf("alone=%t", alone), func(t *testing.T) {
			l := newLoad(t, "async")
			for range 3 {
				l.write()
				l.history.awaitMore(batchSize, "writes do not succeed")
				victim := l.writing[0].storage()
				l.brain.Kill()
				if alone { // writers have their connections
					l.history.awaitMore(batchSize, "writes do not succeed without Brain")
				} else {
					proctest.Kill(t, victim)
				}
				l.startBrain()
				l.history.awaitMore(batchSize, "writes do not succeed after Brain was started again")
				if alone {
					require.Equal(t, victim, l.writing[0].storage(), "the storage was started again")
				}
				l.quiet()
			}
			l.finish()
		})
	}
}

// A storage that is stopped and continued was away for a moment, and nothing else.
func TestStoppedStorageGoesOn(t *testing.T) {
	r := proctest.Random(t, *seed)
	l := newLoad(t, "sync")
	l.write()
	for range 4 {
		l.history.awaitMore(batchSize, "writes do not succeed")
		pid := l.writing[0].storage()
		proctest.Stop(t, pid)
		proctest.Pause(time.Duration(r.IntN(1000)) * time.Millisecond)
		proctest.Continue(t, pid)
		l.history.awaitMore(batchSize, "writes do not succeed after the storage was continued")
		require.Equal(t, pid, l.writing[0].storage(), "the storage was started again")
	}
	l.finish()
}
