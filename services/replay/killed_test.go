package replay

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	nodev1 "github.com/raylink/raylink/gen/raylink/node/v1"
	replayv1 "github.com/raylink/raylink/gen/raylink/replay/v1"
	"github.com/raylink/raylink/internal/proctest"
	"github.com/raylink/raylink/services/replay/internal/table"
)

var kills = flag.Int("kills", 40, "how many times each of the processes that copy replays is killed")

// taskVariable makes this binary a process that copies replays until it is killed.
const taskVariable = "REPLAY_TEST_TASK"

// copying is what such a process does: in this order, what is set.
type copying struct {
	// Checkpoints is where it makes checkpoints of a replay; Taken is one that exists.
	Checkpoints string `json:"checkpoints"`
	Taken       string `json:"taken"`
	// Source is a checkpoint that it restores to a replay with File. Without it, that is each
	// checkpoint that it has made, and the files are File-0, File-1 and so on.
	Source string `json:"source"`
	File   string `json:"file"`
	// Rows is how many rows the replay has, and Capacity how many it has room for.
	Rows     int    `json:"rows"`
	Capacity uint64 `json:"capacity"`
}

func (c *copying) config(file string) *replayv1.ReplayConfig {
	config := testConfig(c.Capacity)
	config.File, config.Tables = file, []*replayv1.TableConfig{Table("per", Prioritized(1)), Table("fifo", FIFO())}
	return config
}

// replay returns a replay with rows whose numbers are their sequence numbers, and items of ten rows
// each, whose priority is their first row's.
func (c *copying) replay(ctx context.Context, t require.TestingT, directory string) *node {
	n, err := newNode(directory, "source", c.config(""))
	require.NoError(t, err)
	_, err = n.Write(ctx, &replayv1.WriteRequest{Batch: numbered(t, n, 0, c.Rows), WaitMs: 1000})
	require.NoError(t, err)
	for first := uint64(0); int(first) < c.Rows; first += 10 {
		for _, name := range []string{"per", "fifo"} {
			_, err := n.tables.byName[name].TryInsert("", []table.Item{{Run: table.Run{First: first, Length: 10}, Priority: float64(first)}}, make([]table.Key, 1))
			require.NoError(t, err)
		}
	}
	return n
}

// failing is a require.TestingT of a process that is no test.
type failing struct{}

func (failing) Errorf(format string, args ...any) { fmt.Printf("error: "+format+"\n", args...) }
func (failing) FailNow()                          { os.Exit(1) }

func openCopy(config *replayv1.ReplayConfig) (*node, error) {
	log := slog.New(slog.DiscardHandler)
	n, err := openNode(config, &nodev1.NodeRef{Nid: "the-nid", Path: "replay-0"}, log)
	if n != nil {
		n.log = log
	}
	return n, err
}

// runCopying does what the variable says, and prints what it has done.
func runCopying(text string) {
	var c copying
	t := failing{}
	require.NoError(t, json.Unmarshal([]byte(text), &c))
	go func() { // ends with the test
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	ctx := context.Background()
	restore := func(source, file string) {
		fmt.Println("restores", file)
		n, err := openCopy(c.config(file))
		require.NoError(t, err)
		require.NoError(t, n.begin(ctx, source))
		fmt.Println("restored", file)
	}
	if c.Source != "" {
		restore(c.Source, c.File)
		select {}
	}
	n := c.replay(ctx, t, c.Checkpoints)
	fmt.Println("serving")
	for i := 0; ; i++ {
		target := filepath.Join(c.Checkpoints, fmt.Sprint("made-", i))
		_, err := n.checkpoint(ctx, target, silent)
		require.NoError(t, err)
		fmt.Println("made", target)
		_, err = n.checkpoint(ctx, c.Taken, silent)
		require.ErrorIs(t, err, ErrDirectory)
		if c.File != "" {
			restore(target, fmt.Sprint(c.File, "-", i))
		}
	}
}

// copier is a process that copies replays.
type copier struct {
	*proctest.Process

	mu    sync.Mutex
	lines []string
	// first is closed once there is a line.
	first chan struct{}
}

func startCopier(t *testing.T, c *copying) *copier {
	t.Helper()
	text, err := json.Marshal(c)
	require.NoError(t, err)
	p := &copier{first: make(chan struct{})}
	p.Process = proctest.Start(t, proctest.Command(taskVariable+"="+string(text), "GORACE=atexit_sleep_ms=0"), func(_ *proctest.Process, out io.Reader) {
		scanner := bufio.NewScanner(out)
		for scanner.Scan() {
			p.mu.Lock()
			if p.lines = append(p.lines, scanner.Text()); len(p.lines) == 1 {
				close(p.first)
			}
			p.mu.Unlock()
		}
	})
	select {
	case <-p.first:
	case <-time.After(proctest.Patience):
		require.Fail(t, "a process does not begin")
	}
	return p
}

// kill kills the process after some time, and returns what it had done by then.
func (p *copier) kill(t *testing.T, after time.Duration) (done []string) {
	t.Helper()
	proctest.Pause(after)
	p.Kill()
	for _, line := range p.lines {
		require.NotContains(t, line, "error", strings.Join(p.lines, "\n"))
		if what, name, ok := strings.Cut(line, " "); ok && what != "restores" {
			done = append(done, name)
		}
	}
	return done
}

// requireWhole checks that a replay has all that it should, or else nothing at all.
func (c *copying) requireWhole(t *testing.T, n *node) (complete bool) {
	t.Helper()
	rows := content(t, n)
	if len(rows) == 0 {
		require.NoError(t, n.vacant(), "neither rows nor items, nor a counter that has advanced")
		require.Empty(t, statesOf(n, "per"))
		require.Empty(t, statesOf(n, "fifo"))
		return false
	}
	require.Len(t, rows, c.Rows)
	for s, number := range rows {
		require.Equal(t, int64(s), number)
	}
	for _, name := range []string{"per", "fifo"} {
		states := statesOf(n, name)
		require.Len(t, states, c.Rows/10)
		for _, s := range states {
			require.Equal(t, table.Run{First: uint64(s.Priority), Length: 10}, s.Run)
		}
		require.EqualValues(t, c.Rows/10, n.tables.byName[name].Meta().Counts.Inserted)
	}
	return true
}

// requireCheckpoint checks that a checkpoint is complete.
func (c *copying) requireCheckpoint(t *testing.T, directory string) {
	t.Helper()
	n := emptyNode(t, t.TempDir(), c.config(""))
	restored, err := n.restore(t.Context(), directory)
	require.NoError(t, err)
	require.Empty(t, restored.GetDifferences())
	require.True(t, c.requireWhole(t, n))
	require.NoError(t, n.close())
}

// takenOver opens the file that a killed process has left, and returns what it has.
func (c *copying) takenOver(t *testing.T, file string) (n *node) {
	t.Helper()
	require.Eventually(t, func() bool { // the kernel may not have ended the process
		var err error
		n, err = openCopy(c.config(file))
		if err != nil {
			require.ErrorContains(t, err, "in use")
		}
		return err == nil
	}, proctest.Patience, time.Millisecond)
	return n
}

// remove closes a replay with a file, and removes the file.
func remove(t *testing.T, n *node, file string) {
	t.Helper()
	require.NoError(t, n.close())
	for _, suffix := range []string{"", itemsSuffix, nodeSuffix} {
		require.NoError(t, os.Remove(file+suffix))
	}
	left, err := filepath.Glob(file + ".*")
	require.NoError(t, err)
	require.Empty(t, left)
}

// TestKilledCheckpoints kills a process that makes checkpoints, at any time: whatever has its name
// is complete, and what is left of the others goes with the next checkpoint.
func TestKilledCheckpoints(t *testing.T) {
	directory, rng := t.TempDir(), proctest.Random(t, 0)
	c := &copying{Checkpoints: directory, Taken: filepath.Join(directory, "taken"), Rows: 3000, Capacity: 5000}
	source := c.replay(t.Context(), t, t.TempDir())
	_, err := source.checkpoint(t.Context(), c.Taken, silent)
	require.NoError(t, err)
	made, parts := 0, 0
	for range *kills {
		p := startCopier(t, c)
		done := p.kill(t, time.Duration(rng.Int64N(int64(60*time.Millisecond))))
		for _, name := range done {
			require.DirExists(t, name, "it was complete when the process was killed")
		}
		entries, err := os.ReadDir(directory)
		require.NoError(t, err)
		for _, e := range entries {
			name := filepath.Join(directory, e.Name())
			switch {
			case strings.HasSuffix(name, ".part"):
				parts++
				_, err := source.restore(t.Context(), name)
				require.Error(t, err)
				target := filepath.Join(directory, strings.TrimSuffix(strings.TrimPrefix(e.Name(), "."), ".part"))
				require.NoDirExists(t, target)
				_, err = source.checkpoint(t.Context(), target, silent)
				require.NoError(t, err, "the next one to the same directory")
				require.NoDirExists(t, name)
				c.requireCheckpoint(t, target)
				require.NoError(t, os.RemoveAll(target))
			case strings.HasPrefix(e.Name(), "made-"):
				made++
				c.requireCheckpoint(t, name)
				require.NoError(t, os.RemoveAll(name))
			}
		}
		c.requireCheckpoint(t, c.Taken)
	}
	t.Logf("%d kills: %d complete checkpoints, %d others", *kills, made, parts)
	require.Positive(t, made)
	require.Positive(t, parts)
	require.NoError(t, source.close())
}

// TestKilledRestores kills a process that restores a checkpoint to a replay with a file: the next
// node finds all of it, or nothing.
func TestKilledRestores(t *testing.T) {
	directory, rng := t.TempDir(), proctest.Random(t, 0)
	c := &copying{Source: filepath.Join(directory, "source"), File: filepath.Join(directory, "kept"), Rows: 20_000, Capacity: 30_000}
	source := c.replay(t.Context(), t, t.TempDir())
	_, err := source.checkpoint(t.Context(), c.Source, silent)
	require.NoError(t, err)
	require.NoError(t, source.close())
	first := startCopier(t, c)
	begin := time.Now()
	require.Eventually(t, func() bool {
		first.mu.Lock()
		defer first.mu.Unlock()
		return len(first.lines) == 2
	}, proctest.Patience, time.Millisecond)
	takes := time.Since(begin)
	first.kill(t, 0)
	complete, empty := 0, 0
	n := c.takenOver(t, c.File)
	require.True(t, c.requireWhole(t, n))
	remove(t, n, c.File)
	for range *kills {
		p := startCopier(t, c)
		done := p.kill(t, time.Duration(rng.Int64N(int64(takes+takes/2))))
		n := c.takenOver(t, c.File)
		whole := c.requireWhole(t, n)
		require.True(t, whole || len(done) == 0, "it was restored when the process was killed")
		if whole {
			complete++
		} else {
			empty++
			_, err := n.restore(t.Context(), c.Source)
			require.NoError(t, err, "the next node restores it")
			require.True(t, c.requireWhole(t, n))
		}
		remove(t, n, c.File)
	}
	t.Logf("%d kills of restores that take %v: %d were complete, %d empty", *kills, takes, complete, empty)
	require.Positive(t, empty)
	require.Positive(t, complete)
}

// TestKilledCopies kills a process that makes checkpoints and restores them to files.
func TestKilledCopies(t *testing.T) {
	directory, rng := t.TempDir(), proctest.Random(t, 0)
	c := &copying{
		Checkpoints: filepath.Join(directory, "checkpoints"), Taken: filepath.Join(directory, "taken"), File: filepath.Join(directory, "kept"),
		Rows: 3000, Capacity: 5000,
	}
	require.NoError(t, os.Mkdir(c.Checkpoints, 0o700))
	source := c.replay(t.Context(), t, t.TempDir())
	_, err := source.checkpoint(t.Context(), c.Taken, silent)
	require.NoError(t, err)
	require.NoError(t, source.close())
	made, complete, empty := 0, 0, 0
	for range *kills {
		p := startCopier(t, c)
		done := map[string]bool{}
		for _, name := range p.kill(t, time.Duration(rng.Int64N(int64(100*time.Millisecond)))) {
			done[name] = true
		}
		for i := 0; ; i++ {
			name, file := filepath.Join(c.Checkpoints, fmt.Sprint("made-", i)), fmt.Sprint(c.File, "-", i)
			if _, err := os.Stat(name); errors.Is(err, fs.ErrNotExist) {
				require.False(t, done[name])
				break
			}
			made++
			c.requireCheckpoint(t, name)
			require.NoError(t, os.RemoveAll(name))
			if _, err := os.Stat(file + nodeSuffix); errors.Is(err, fs.ErrNotExist) {
				continue
			}
			n := c.takenOver(t, file)
			whole := c.requireWhole(t, n)
			require.True(t, whole || !done[file], "it was restored when the process was killed")
			if whole {
				complete++
			} else {
				empty++
			}
			remove(t, n, file)
		}
		c.requireCheckpoint(t, c.Taken)
	}
	t.Logf("%d kills: %d complete checkpoints, %d files that are complete and %d that are empty", *kills, made, complete, empty)
	require.Positive(t, made)
	require.Positive(t, complete)
}
