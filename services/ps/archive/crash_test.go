package archive

import (
	"bufio"
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/raylink/raylink/internal/proctest"
)

// writerVariable is the environment variable that makes this test binary a writer.
const writerVariable = "ARCHIVE_TEST_WRITER"

func TestMain(m *testing.M) {
	if directory := os.Getenv(writerVariable); directory != "" {
		if err := writeOn(directory); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	os.Exit(m.Run())
}

// writeOn saves one version after another until the process is killed. It prints each id once it
// was saved.
func writeOn(directory string) error {
	signal.Ignore(syscall.SIGPIPE)
	id, err := strconv.ParseUint(os.Args[1], 10, 64)
	if err != nil {
		return err
	}
	for ; ; id++ {
		content := numbered(new(testing.T), id)
		if err := Write(directory, versionOf("policy/best", id, content), content); err != nil {
			return err
		}
		if _, err := fmt.Println(id); err != nil {
			return err
		}
	}
}

// TestKilledWriterLeavesTheOldOrTheNewVersion kills a process at random moments of its writes.
func TestKilledWriterLeavesTheOldOrTheNewVersion(t *testing.T) {
	directory := t.TempDir()
	const kills, seed = 40, 10
	random := rand.New(rand.NewPCG(seed, 0))
	next := uint64(1)
	recovered := 0
	for range kills {
		writer := exec.CommandContext(t.Context(), os.Args[0], strconv.FormatUint(next, 10))
		writer.Env = append(os.Environ(), writerVariable+"="+directory)
		writer.Stderr = os.Stderr
		out, err := writer.StdoutPipe()
		require.NoError(t, err)
		require.NoError(t, writer.Start())
		lines := bufio.NewScanner(out)
		require.True(t, lines.Scan(), "the writer saved its first version")
		time.AfterFunc(time.Duration(random.IntN(int(20*time.Millisecond))), func() { _ = writer.Process.Kill() })
		acknowledged := lines.Text()
		for lines.Scan() {
			acknowledged = lines.Text()
		}
		var exit *exec.ExitError
		require.ErrorAs(t, writer.Wait(), &exit)
		last, err := strconv.ParseUint(acknowledged, 10, 64)
		require.NoError(t, err)

		version, content, release, err := Read(directory, "policy/best")
		require.NoError(t, err, "neither the old nor the new version is complete")
		require.GreaterOrEqual(t, version.GetId(), last, "an acknowledged version is lost")
		require.LessOrEqual(t, version.GetId(), last+1)
		require.True(t, bytes.Equal(numbered(t, version.GetId()), content), "mixed versions")
		require.NoError(t, release())
		if len(files(t, directory)) != 3 {
			recovered++
		}
		next = version.GetId() + 1
	}
	t.Logf("seed %d: %d of %d kills left files of a writer", seed, recovered, kills)
	save(t, directory, "policy/best", next, nil)
	assert.Len(t, files(t, directory), 3, "nothing of the dead is left")
}

// TestFullDiskLeavesTheStateAsBefore runs in a process with a small file system of its own.
func TestFullDiskLeavesTheStateAsBefore(t *testing.T) {
	if !proctest.WithOwnMounts(t) {
		return
	}
	disk := t.TempDir()
	proctest.Mount(t, disk, 1<<20)
	directory := filepath.Join(disk, "archive")
	small, large := tensorContent(t, 400_000, 1), tensorContent(t, 800_000, 2)
	save(t, directory, "a/b", 1, small)
	before := files(t, directory)
	for _, tag := range []string{"a/b", "a/c", "new/one", "top"} {
		err := Write(directory, versionOf(tag, 2, large), large)
		require.ErrorIs(t, err, ErrNoRoom)
		require.ErrorIs(t, err, syscall.ENOSPC)
		require.ErrorContains(t, err, fmt.Sprintf("save tag %q in %s: no space left: the content has %d bytes", tag, directory, len(large)))
		require.NotContains(t, err.Error(), " 0 bytes left")
		require.Equal(t, before, files(t, directory), "nothing is left of it")
		requireSaved(t, directory, "a/b", 1, small)
	}
	// Not even space for the JSON, or a folder.
	filler, err := os.Create(filepath.Join(disk, "filler"))
	require.NoError(t, err)
	for err == nil {
		_, err = filler.Write(make([]byte, 4096))
	}
	require.NoError(t, filler.Close())
	for _, tag := range []string{"a/b", "new/one", "top"} {
		require.ErrorIs(t, Write(directory, versionOf(tag, 2, nil), nil), ErrNoRoom)
		require.Equal(t, before, files(t, directory))
		requireSaved(t, directory, "a/b", 1, small)
	}
	require.NoError(t, os.Remove(filler.Name()))
	save(t, directory, "a/b", 3, small)
	requireSaved(t, directory, "a/b", 3, small)
	assert.Equal(t, before, files(t, directory))
}
