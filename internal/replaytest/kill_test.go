package replaytest

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/raylink/raylink/internal/proctest"
)

// checker kills, stops and continues the processes that use a replay.
type checker struct {
	*system

	random *rand.Rand
	// creator is the process whose child the replay is, and inspector the one that audits it.
	creator, inspector *process
	// actors write and read.
	actors []*process
	// path is that of the replay, pid its process, and life its number.
	path string
	pid  int
	life uint64
	// keeps is set if the ring outlives its node: file is its file, and nodeKills are the kills of
	// its nodes.
	keeps bool
	// kept is how many items audits have found that were to survive a kill of the node.
	kept int
	// aged is set if the replay is that of items that are updated at a high rate.
	aged      bool
	file      string
	nodeKills []killed
	// writers is the first id of the next writers.
	writers uint64
	// lost is how many items of the queue may have been lost with their readers in this life.
	lost int
	// written is how many rows processes have written that have ended, or tasks.
	written int64
}

func writerTasks() []string { return []string{"rows", "items", "queue"} }
func readerTasks() []string { return []string{"read", "per", "all", "consume", "starve"} }

// newChecker starts two writers and two readers that map the ring, and one of each that goes
// through the node.
func newChecker(t *testing.T) *checker {
	t.Helper()
	c := newCheckerOf(t, nil)
	for _, role := range []string{actorRole, actorRole, remoteRole} {
		c.actors = append(c.actors, c.actor("writer", role, writerTasks()...), c.actor("reader", role, readerTasks()...))
	}
	return c
}

// newCheckerOf starts processes of the given roles that have the same tasks.
func newCheckerOf(t *testing.T, tasks []string, roles ...string) *checker {
	t.Helper()
	chosen := *seed
	if chosen == 0 {
		chosen = rand.Uint64()
	}
	c := &checker{system: newSystem(t), random: proctest.Random(t, chosen), writers: 1 << 20}
	c.history.seed = chosen
	c.creator = c.actor("creator", actorRole)
	c.inspector = c.actor("auditor", actorRole)
	for _, role := range roles {
		c.actors = append(c.actors, c.actor("actor", role, tasks...))
	}
	return c
}

// order returns the order that opens the replay, or starts the tasks of one that is open.
func (c *checker) order(do string, p *process) order {
	c.writers += 16
	if len(p.tasks) == len(readerTasks()) {
		c.lost += queueBatch
	}
	return order{Do: do, Path: c.path, Life: c.life, File: c.file, Tasks: p.tasks, First: c.writers, Seed: c.random.Uint64()}
}

// begin creates a replay, and lets all processes use it.
func (c *checker) begin() {
	c.t.Helper()
	require.NoError(c.t, os.RemoveAll(lifeRecords(c.records(), c.life)))
	c.life++
	c.lost = 0
	require.NoError(c.t, os.Mkdir(c.directory(), 0o700))
	if c.keeps {
		c.file = filepath.Join(c.directory(), "kept.ring")
	}
	c.create()
	c.history.didf("life %d: %s is process %d", c.life, c.path, c.pid)
	c.inspector.Must(order{Do: "open", Path: c.path, Life: c.life, File: c.file})
	for _, p := range c.actors {
		p.Must(c.order("open", p))
	}
}

// create creates the node.
func (c *checker) create() {
	c.t.Helper()
	create := order{Do: "create", Directory: c.directory()}
	if c.keeps {
		create = order{Do: "create", File: c.file, Aged: c.aged}
	}
	// The kernel may not have ended a killed process yet, which has locked the file.
	a := c.creator.Eventually(proctest.Patience, create, func(a answer) bool { return a.Error == "" }, "the replay is not created")
	c.path, c.pid = a.Path, a.PID
}

// leave ends what uses the replay. dead is set if it is dead.
func (c *checker) leave(dead bool) {
	c.t.Helper()
	do := "close"
	if dead {
		do = "leave"
	}
	for _, p := range append(c.actors, c.inspector) {
		p.Must(order{Do: do})
	}
	c.history.check()
}

// rows returns how many rows were written.
func (c *checker) rows() int64 { return c.written + c.done("rows") }

// done returns how much tasks of a name have done that run.
func (c *checker) done(task string) int64 {
	c.history.mu.Lock()
	defer c.history.mu.Unlock()
	n := int64(0)
	for _, counts := range c.history.counts {
		n += counts[task]
	}
	return n
}

// forget counts the rows of tasks that have ended.
func (c *checker) forget(processes ...*process) {
	c.history.mu.Lock()
	defer c.history.mu.Unlock()
	for _, p := range processes {
		c.written += c.history.counts[p.Name]["rows"]
		delete(c.history.counts, p.Name)
	}
}

// directory is that of the ring.
func (c *checker) directory() string { return filepath.Join(c.rings(), strconv.FormatUint(c.life, 10)) }

// pause waits for a random time.
func (c *checker) pause(most time.Duration) {
	proctest.Pause(time.Duration(c.random.Int64N(int64(most))))
}

// disturb kills, or stops and continues, a process at random.
func (c *checker) disturb() {
	c.t.Helper()
	c.pause(30 * time.Millisecond)
	i := c.random.IntN(len(c.actors))
	p := c.actors[i]
	kind := c.random.IntN(10)
	switch {
	case kind < 3:
		c.kill(i)
	case kind < 8:
		c.history.didf("stop %s", p.Name)
		p.Stop()
		p.stopped = true
		c.history.progress(fmt.Sprintf("while %s is stopped", p.Name), c.actors)
		if kind < 6 {
			c.lap()
		} else {
			c.pause(30 * time.Millisecond)
		}
		if kind == 7 {
			c.kill(i)
			break
		}
		c.history.didf("continue %s", p.Name)
		p.Resume()
		p.stopped = false
	default:
		c.history.didf("stop the replay, process %d", c.pid)
		c.lost += queueBatch * len(c.actors)
		proctest.Stop(c.t, c.pid)
		var mapped []*process
		for _, p := range c.actors {
			if p.role == actorRole {
				mapped = append(mapped, p)
			}
		}
		c.history.progress("while the replay's process is stopped, though the ring is mapped", mapped, "rows", "read")
		c.pause(300 * time.Millisecond)
		c.history.didf("continue the replay")
		proctest.Continue(c.t, c.pid)
	}
	c.history.progress("afterwards", c.actors)
}

// lap waits until the others have written a ring of rows, and so have met all that a stopped
// process holds.
func (c *checker) lap() {
	c.t.Helper()
	for until := c.rows() + capacity; c.rows() < until; {
		c.history.progress("while others are stopped", c.actors, "rows")
	}
}

// kill kills an actor, and starts another one.
func (c *checker) kill(i int) {
	c.t.Helper()
	p := c.actors[i]
	c.history.didf("kill %s", p.Name)
	p.Kill()
	c.replace(i, false)
}

// replace starts an actor in the place of one that was killed.
func (c *checker) replace(i int, calm bool) {
	c.t.Helper()
	p := c.actors[i]
	c.forget(p)
	name := "writer"
	if len(p.tasks) == len(readerTasks()) {
		name = "reader"
	}
	again := c.actor(name, p.role, p.tasks...)
	open := c.order("open", again)
	open.Calm = calm
	again.Must(open)
	c.actors[i] = again
	c.history.didf("%s takes its place", again.Name)
}

// quiet ends all tasks: first those that write, whose items may wait for those that read.
func (c *checker) quiet() {
	c.t.Helper()
	for _, tasks := range []int{len(writerTasks()), len(readerTasks())} {
		for _, p := range c.actors {
			if len(p.tasks) == tasks {
				p.Must(order{Do: "quiet"})
			}
		}
	}
	c.forget(c.actors...)
}

// audit compares the replay with the records.
func (c *checker) audit() {
	c.t.Helper()
	c.quiet()
	c.history.check()
	a := c.inspector.Must(order{Do: "audit", Lost: c.lost, Kills: c.nodeKills})
	c.history.didf("audit: %s", a.Text)
	c.t.Logf("life %d: %d rows written; %s", c.life, c.rows(), a.Text)
	require.Empty(c.t, a.Faults)
	c.kept += a.Kept
}

// killReplay kills the replay's process while it is in use. All that wait for it get errors.
func (c *checker) killReplay() {
	c.t.Helper()
	c.killNode(nil)
	c.leave(true)
	c.forget(c.actors...)
}

// killNode is killReplay, but the replay stays open. Processes that are stopped get no errors.
// stalled returns how long the machine may have kept the node from running; it may be nil.
func (c *checker) killNode(stalled func() time.Duration) {
	c.t.Helper()
	var readers []string
	for _, p := range c.actors {
		if (c.aged || len(p.tasks) == len(readerTasks())) && !p.stopped {
			readers = append(readers, p.Name)
		}
	}
	c.history.mu.Lock()
	before := maps.Clone(c.history.released)
	c.history.mu.Unlock()
	c.history.didf("kill the replay, process %d", c.pid)
	at := killed{From: clock()}
	proctest.Kill(c.t, c.pid)
	at.To = clock()
	if stalled != nil {
		at.Stalled = int64(stalled())
		c.history.didf("the machine may have kept it from running for %v", time.Duration(at.Stalled))
	}
	c.nodeKills = append(c.nodeKills, at)
	// What the node has returned may be lost on its way.
	c.lost += queueBatch * len(c.actors)
	c.history.await(time.Second+slow, "calls that wait get no errors within a second of the death of the replay's process", func() bool {
		return !slices.ContainsFunc(readers, func(name string) bool { return c.history.released[name] == before[name] })
	})
}

// slow is added to the bounds of what must not take long: other tests use the processors too, and
// with the race detector everything takes ten times as long.
const slow = 10 * time.Second

// disturbances is how many rows are written for each disturbance.
const disturbances = 2500

// Rows and items are written, read and sampled by several processes, which are killed, stopped and
// continued at random, and so is the replay's.
func TestReplaySurvivesKills(t *testing.T) {
	c := newChecker(t)
	lives := int64(*kills + 1)
	for life := range lives {
		c.begin()
		c.history.progress("at the beginning", c.actors)
		before := c.rows()
		quota := (int64(*rows)*(life+1))/lives - before
		for due := int64(0); c.rows()-before < quota; {
			if c.rows()-before >= due {
				c.disturb()
				due += max(disturbances, quota/200)
				continue
			}
			c.history.progress("between disturbances", c.actors)
		}
		c.audit()
		if life < lives-1 {
			for _, p := range c.actors {
				p.Must(c.order("start", p))
			}
			c.history.progress("after the audit", c.actors)
			c.killReplay()
		}
	}
	c.finish()
}

// finish ends all processes, and checks that the ring is whole.
func (c *checker) finish() {
	c.t.Helper()
	c.leave(false)
	for _, p := range append(c.actors, c.inspector) {
		p.End()
	}
	last := c.actor("last writer", actorRole)
	last.Must(order{Do: "open", Path: c.path, Life: c.life})
	a := last.Must(order{Do: "fill", First: 7})
	c.t.Logf("%d rows: the ring is whole: %s", c.rows(), a.Text)
	last.Must(order{Do: "close"})
	c.creator.Must(order{Do: "end", Path: c.path})
	left, err := os.ReadDir(c.directory())
	require.NoError(c.t, err)
	if c.keeps {
		require.Len(c.t, left, 3, "the ring, its items and the node's reference stay")
		return
	}
	require.Empty(c.t, left, "the ring's file is left")
}

// takeOver creates the next node with the file. Processes that have mapped the ring go on, and the
// others find the node.
func (c *checker) takeOver() {
	c.t.Helper()
	c.create()
	c.history.didf("%s is process %d", c.path, c.pid)
	for _, p := range c.actors {
		if p.role == remoteRole && !p.stopped {
			c.reopen(p)
		}
	}
}

// reopen makes a process that goes through the node use the next one.
func (c *checker) reopen(p *process) {
	c.t.Helper()
	p.Must(order{Do: "leave"})
	c.forget(p)
	again := c.order("open", p)
	again.Calm = true
	p.Must(again)
}

// calm makes all write slowly for more than a second, so that the ring has items that the node must
// have saved.
func (c *checker) calm() {
	c.t.Helper()
	for _, p := range c.actors {
		p.Must(order{Do: "calm"})
	}
	proctest.Pause(time.Duration(maxAge))
	c.pause(700 * time.Millisecond)
}

// A replay with a file is killed while it is in use, as its users are, and the next node takes over
// its file. The processes that have mapped the ring go on. All rows that were acknowledged are
// there, and all items and priorities that were a second before.
func TestReplayWithFileSurvivesKills(t *testing.T) {
	c := newChecker(t)
	c.keeps = true
	c.begin()
	nodes := *kills + 1
	for node := range nodes {
		c.history.progress("at the beginning", c.actors)
		before := c.rows()
		quota := int64(*rows / 4 / nodes)
		for due := int64(0); c.rows()-before < quota; {
			if c.rows()-before >= due {
				c.disturb()
				due += max(disturbances, quota/200)
				continue
			}
			c.history.progress("between disturbances", c.actors)
		}
		c.audit()
		if node == nodes-1 {
			break
		}
		for _, p := range c.actors {
			p.Must(c.order("start", p))
		}
		c.history.progress("after the audit", c.actors)
		stalled := stalls()
		c.calm()
		c.changeNode(stalled)
		c.audit()
		for _, p := range c.actors {
			p.Must(c.order("start", p))
		}
	}
	require.True(t, c.kept > 0 || nodes == 1, "no item was old enough to be checked")
	c.finish()
}

// changeNode kills the node, and lets the next one take over the file. A process may be stopped
// meanwhile, or killed with the node.
func (c *checker) changeNode(stalled func() time.Duration) {
	c.t.Helper()
	i, what := c.random.IntN(len(c.actors)), c.random.IntN(3)
	p := c.actors[i]
	if what > 0 {
		c.history.didf("stop %s", p.Name)
		p.Stop()
		p.stopped = true
	}
	c.killNode(stalled)
	if what == 2 { // while there is no node
		c.history.didf("kill %s", p.Name)
		p.Kill()
	}
	c.takeOver()
	if what == 2 {
		c.replace(i, true)
	}
	c.history.progress("with the next node", c.actors)
	if what != 1 {
		return
	}
	c.history.didf("continue %s", p.Name)
	p.Resume()
	p.stopped = false
	if p.role == remoteRole {
		c.reopen(p)
	}
	c.history.progress("with the next node, which took over while it was stopped", c.actors)
}
