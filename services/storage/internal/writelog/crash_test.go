package writelog

import (
	"bufio"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// childEnv makes the test binary a process that commits to a directory until it is killed.
const childEnv = "WRITELOG_CHILD"

// window is how many records the child keeps.
const window = 500

// commitForever commits groups, and prints the last id of each when it is acknowledged.
func commitForever(dir, mode string) error {
	var last, oldest uint64
	oldest = 1
	l, err := Open(Options{Dir: dir, Sync: mode == "sync", Logger: quiet, removeAtOnce: 64}, func(r Record) error {
		if last == 0 {
			oldest = r.ID
		}
		last = r.ID
		return nil
	})
	if err != nil {
		return err
	}
	for {
		end := last + 1 + rand.Uint64N(8)
		var remove []uint64
		for ; oldest+window <= end; oldest++ {
			remove = append(remove, oldest)
		}
		if err := commit(l, last+1, end, remove...); err != nil {
			return err
		}
		last = end
		if _, err := fmt.Println(last); err != nil {
			return err
		}
	}
}

func TestAcknowledgedWritesSurviveKill(t *testing.T) {
	for _, mode := range []string{"async", "sync"} {
		dir := t.TempDir() + "/data"
		total := uint64(0)
		for range 12 {
			acknowledged := killedChild(t, dir, mode)
			l, found := mustRead(t, Options{Dir: dir})
			for id := max(acknowledged, window) - window + 1; id <= acknowledged; id++ {
				require.Equal(t, change(id), found[id], "%s: an acknowledged write is lost, the last one is %d", mode, acknowledged)
			}
			require.NoError(t, l.Close())
			total = acknowledged
		}
		t.Logf("%s: %d writes were acknowledged in 12 kills", mode, total)
	}
}

// killedChild kills a child while it commits, and returns the last id that it has acknowledged.
func killedChild(t *testing.T, dir, mode string) (last uint64) {
	t.Helper()
	exe, err := os.Executable()
	require.NoError(t, err)
	cmd := exec.CommandContext(t.Context(), exe)
	cmd.Env = append(os.Environ(), childEnv+"="+mode, childEnv+"_DIR="+dir)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	kill := rand.IntN(2000)
	lines := bufio.NewScanner(out)
	for n := 0; lines.Scan(); n++ {
		last, err = strconv.ParseUint(lines.Text(), 10, 64)
		require.NoError(t, err)
		if n == kill {
			require.NoError(t, cmd.Process.Kill())
		}
	}
	_ = cmd.Wait() // it was killed
	require.NotZero(t, last)
	return last
}

// TestLossOfPower stops the clock of the file system at random, keeps a random part of what was not
// synced, and opens what is left.
func TestLossOfPower(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		var failed any // rapid's panics must not end the bubble
		synctest.Test(t, func(*testing.T) {
			defer func() { failed = recover() }()
			losePower(rt, reported{rt, t})
		})
		if failed != nil {
			panic(failed)
		}
	})
}

// reported is a test of rapid that says at once why it fails. The file system that loses power does
// not lose the same each time, so the run that rapid repeats for its output may end in another way.
type reported struct {
	*rapid.T

	test *testing.T
}

func (r reported) Errorf(format string, args ...any) {
	r.test.Logf(format, args...)
	r.T.Errorf(format, args...)
}

func (r reported) Fatalf(format string, args ...any) {
	r.test.Logf(format, args...)
	r.T.Fatalf(format, args...)
}

func losePower(rt *rapid.T, t reported) {
	seed := rapid.Uint64().Draw(rt, "seed")
	rng := rand.New(rand.NewPCG(seed, seed))
	fs := vfs.NewCrashableMem()
	var last, given uint64 // the last record, and the last id that may have been given
	expected := map[uint64]string{}
	for crashes := rapid.IntRange(1, 4).Draw(rt, "crashes"); crashes > 0; crashes-- {
		mode := rapid.Bool().Draw(rt, "sync")
		found := make(map[uint64]string)
		opts := Options{Dir: "data", FS: fs, Sync: mode, Logger: quiet, reserveAtOnce: rapid.SampledFrom([]uint64{1, 100, 1 << 24}).Draw(rt, "reserve")}
		l, err := Open(opts, func(r Record) error {
			found[r.ID] = string(r.Change)
			return nil
		})
		require.NoError(t, err, "a loss of power looks like damage")
		defer l.Close() //nolint:errcheck // it is for a test that fails
		require.Equal(t, expected, found)
		require.GreaterOrEqual(t, l.Last(), given, "ids would be given again")
		given = l.Last()

		durable := last
		acknowledged := map[time.Time]uint64{}
		for range rapid.IntRange(0, 40).Draw(rt, "commits") {
			n := rapid.SampledFrom([]uint64{1, 1, 1, 2, 2, 10, 10, 300, 2000}).Draw(rt, "writes")
			require.NoError(t, commit(l, given+1, given+n))
			for id := given + 1; id <= given+n; id++ {
				expected[id] = change(id)
			}
			given += n
			last = given
			acknowledged[time.Now()] = last
			switch rapid.IntRange(0, 20).Draw(rt, "then") {
			case 0, 1, 2:
				<-time.After(time.Duration(rng.Int64N(int64(80 * time.Millisecond))))
			case 3:
				require.NoError(t, l.Sync())
				durable = last
			}
		}
		crashed := fs.CrashClone(vfs.CrashCloneCfg{
			UnsyncedDataPercent: rapid.SampledFrom([]int{0, 30, 70, 100}).Draw(rt, "kept"), RNG: rng,
		})
		for at, id := range acknowledged {
			if mode || time.Since(at) >= 100*time.Millisecond {
				durable = max(durable, id)
			}
		}
		require.NoError(t, l.Close())
		if rapid.IntRange(0, 3).Draw(rt, "closed") == 0 { // not a loss of power
			fs = fs.CrashClone(vfs.CrashCloneCfg{})
			l, _, err := reread(fs, mode)
			require.NoError(t, err)
			defer l.Close() //nolint:errcheck // as above
			require.Equal(t, given, l.Last(), "closing the log loses the ids")
			require.NoError(t, l.Close())
			continue
		}

		lastFound := uint64(0)
		l, found, err = reread(crashed, mode)
		require.NoError(t, err, "a loss of power looks like damage")
		defer l.Close() //nolint:errcheck // as above
		for id := range found {
			if found[id] != expected[id] {
				t.Fatalf("the write %d is %q", id, found[id])
			}
			lastFound = max(lastFound, id)
		}
		for id := range expected {
			if _, ok := found[id]; id <= lastFound && !ok {
				t.Fatalf("the write %d is lost, and the later one %d is not", id, lastFound)
			}
		}
		require.GreaterOrEqual(t, lastFound, durable, "durable writes are lost")
		require.GreaterOrEqual(t, l.Last(), given, "ids would be given again")
		if lastFound < last {
			require.Greater(t, l.Last(), given, "a watcher that has seen the last id, which is lost, would resume")
		}
		given = l.Last()
		require.NoError(t, l.Close())
		fs, last, expected = crashed, lastFound, found
	}
}

// reread opens what a crash has left.
func reread(fs vfs.FS, sync bool) (*Log, map[uint64]string, error) {
	found := make(map[uint64]string)
	l, err := Open(Options{Dir: "data", FS: fs, Sync: sync, Logger: quiet}, func(r Record) error {
		found[r.ID] = string(r.Change)
		return nil
	})
	return l, found, err
}
