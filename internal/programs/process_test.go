package programs

import (
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/raylink/raylink/internal/proctest"
)

func TestTransferOfAKilledProcessIsContinued(t *testing.T) {
	dir := proctest.Directory(t, "programs")
	p := makeProgram("large", 1<<20)
	const sent = 300_001
	from := func(offset int64) Source {
		return Source{Name: "head", Fetch: func(ctx context.Context, at int64, into io.Writer) error {
			assert.Equal(t, offset, at)
			return p.source().Fetch(ctx, at, into)
		}}
	}
	other := begin(t, "transfer", dir, sent)
	require.ElementsMatch(t, []string{p.partial(), transferName(p.id) + lockSuffix}, files(t, dir))
	// One that waits continues when the other has died; one that comes later does the same.
	c := open(t, dir, 1<<30)
	waited := make(chan error)
	go func() {
		use, err := c.Get(t.Context(), p.id, from(sent).cut(sent))
		if err == nil {
			use.Release()
		}
		waited <- err
	}()
	c.waitFor(t, 1)
	other.Kill()
	require.ErrorIs(t, <-waited, errCut)
	begin(t, "transfer", dir, 100).Kill()
	get(t, open(t, dir, 1<<30), p, from(2*sent+100))
	require.Equal(t, []string{p.complete()}, files(t, dir))
}

func TestProgramOfAnotherProcessStays(t *testing.T) {
	dir := proctest.Directory(t, "programs")
	p, next := makeProgram("large", 1<<20), makeProgram("next", 1000)
	user := begin(t, "use", dir)
	c := open(t, dir, 1<<20)
	_, err := c.Get(t.Context(), next.id, refuses(t))
	require.ErrorContains(t, err, "1000 bytes are needed, and the cache of 1048576 bytes in "+dir+", without what is in use, has 0 available")
	require.Equal(t, []string{p.complete()}, files(t, dir))
	user.Kill()
	get(t, c, next, next.source())
	require.Equal(t, []string{next.complete()}, files(t, dir))
}

// sendsFile is a source of a file that is served, as a host does it.
func sendsFile(f *File) Source {
	return Source{Name: "head", Fetch: func(_ context.Context, offset int64, into io.Writer) error {
		for {
			chunk, err := f.Chunk(offset)
			if err != nil || len(chunk) == 0 {
				return err
			}
			if _, err := into.Write(chunk); err != nil {
				return err
			}
			offset += int64(len(chunk))
		}
	}}
}

func TestFetchedProgramRuns(t *testing.T) {
	self, err := Self()
	require.NoError(t, err)
	defer func() { require.NoError(t, self.Close()) }()
	c := open(t, cacheDir(t), 1<<30)
	use, err := c.Get(t.Context(), self.Identity(), sendsFile(self))
	require.NoError(t, err)
	defer use.Release()
	cmd := exec.Command(use.Path())
	cmd.Env = append(os.Environ(), role+"=hello")
	out, err := cmd.CombinedOutput()
	require.NoError(t, err)
	require.Equal(t, "hello\n", string(out))
}

// A process that is being started has a copy of each descriptor of its parent, and a file that any
// process has open for writing can't be executed.
func TestFetchedProgramRunsWhileProcessesAreBeingStarted(t *testing.T) {
	small, err := exec.LookPath("true")
	require.NoError(t, err)
	file, err := OpenFile(small)
	if err != nil {
		t.Skipf("skipped: this system's true is no executable: %v", err)
	}
	defer func() { require.NoError(t, file.Close()) }()
	ctx, cancel := context.WithCancel(t.Context())
	var starters sync.WaitGroup
	for range 4 {
		starters.Go(func() {
			for ctx.Err() == nil {
				assert.NoError(t, exec.Command(small).Run())
			}
		})
	}
	defer starters.Wait()
	defer cancel()
	for range 100 {
		c := open(t, cacheDir(t), 1<<30)
		use, err := c.Get(t.Context(), file.Identity(), sendsFile(file))
		require.NoError(t, err)
		require.NoError(t, exec.Command(use.Path()).Run())
		use.Release()
	}
}

func TestFullDisk(t *testing.T) {
	if !proctest.WithOwnMounts(t) {
		return
	}
	disk := t.TempDir()
	proctest.Mount(t, disk, 1<<20)
	dir := filepath.Join(disk, "programs")
	c := open(t, dir, 1<<30)
	large := makeProgram("large", 1<<20+1)
	_, err := c.Get(t.Context(), large.id, refuses(t))
	var space *SpaceError
	require.ErrorAs(t, err, &space)
	require.ErrorIs(t, err, unix.ENOSPC)
	require.EqualValues(t, 1<<20+1, space.Needed)
	require.Greater(t, space.Available, int64(1<<20-64<<10))
	require.LessOrEqual(t, space.Available, int64(1<<20))
	require.ErrorContains(t, err, "the program large from head: 1048577 bytes are needed, and the file system of "+dir+" has ")
	require.ErrorContains(t, err, "available: no space left on device")
	require.Empty(t, files(t, dir))

	// One that has begun can be completed, whatever else uses the space meanwhile.
	p := makeProgram("cartpole", 512<<10)
	_, err = c.Get(t.Context(), p.id, p.source().cut(100))
	require.ErrorIs(t, err, errCut)
	filler, err := os.Create(filepath.Join(disk, "filler"))
	require.NoError(t, err)
	for err == nil {
		_, err = filler.Write(make([]byte, 4096))
	}
	require.ErrorIs(t, err, unix.ENOSPC)
	require.NoError(t, filler.Close())
	use := get(t, c, p, p.source())
	_, err = c.Get(t.Context(), makeProgram("other", 4096).id, refuses(t))
	require.ErrorContains(t, err, "4096 bytes are needed, and the file system of "+dir+" has 0 available: no space left on device")
	require.Equal(t, []string{p.complete()}, files(t, dir))
	use.Release()
	c.Close()
}
