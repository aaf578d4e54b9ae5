package programs

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/raylink/raylink/internal/leaktest"
	"github.com/raylink/raylink/internal/proctest"
)

// role is the environment variable that makes this binary another process of a test.
const role = "PROGRAMS_TEST_ROLE"

func TestMain(m *testing.M) {
	if what, ok := os.LookupEnv(role); ok {
		if err := play(strings.Fields(what)); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	code := leaktest.Process()
	goleak.VerifyTestMain(m, goleak.Cleanup(func(c int) { os.Exit(code(c)) }))
}

// play does what another process of a test is for, and stays until its input ends.
func play(words []string) error {
	ctx := context.Background()
	if words[0] == "hello" {
		fmt.Println("hello")
		return nil
	}
	c, err := Open(ctx, words[1], 1<<30)
	if err != nil {
		return err
	}
	large := makeProgram("large", 1<<20)
	switch words[0] {
	case "transfer": // some bytes, and no more
		n, err := strconv.Atoi(words[2])
		if err != nil {
			return err
		}
		_, err = c.Get(ctx, large.id, Source{Name: "parent", Fetch: func(_ context.Context, at int64, into io.Writer) error {
			if _, err := into.Write(large.content[at : int(at)+n]); err != nil {
				return err
			}
			fmt.Println("serving")
			_, err := io.Copy(io.Discard, os.Stdin)
			return err
		}})
		return err
	case "use":
		if _, err := c.Get(ctx, large.id, large.source()); err != nil {
			return err
		}
		fmt.Println("serving")
		_, err := io.Copy(io.Discard, os.Stdin)
		return err
	}
	return fmt.Errorf("no such role: %q", words)
}

// begin starts another process, and returns when it has done what it is for.
func begin(t *testing.T, words ...any) *proctest.Process {
	t.Helper()
	what := strings.TrimSpace(fmt.Sprintln(words...))
	return proctest.StartServing(t, what, proctest.Command(role+"="+what))
}

// program is one that tests transfer. What its bytes are does not matter to a cache.
type program struct {
	id      Identity
	content []byte
}

func makeProgram(name string, size int) program {
	content := make([]byte, 0, size+sha256.Size)
	for block := sha256.Sum256([]byte(name)); len(content) < size; block = sha256.Sum256(block[:]) {
		content = append(content, block[:]...)
	}
	return programOf(name, content[:size])
}

func programOf(name string, content []byte) program {
	return program{content: content, id: Identity{
		SHA256: sha256.Sum256(content), Size: int64(len(content)), GOOS: runtime.GOOS, GOARCH: runtime.GOARCH, Name: name,
	}}
}

// source sends the program.
func (p program) source() Source { return sends("head", p.content) }

// sends returns a source that sends some bytes, from the offset, in chunks of different sizes.
func sends(name string, content []byte) Source {
	return Source{Name: name, Fetch: func(_ context.Context, offset int64, into io.Writer) error {
		rest := content[offset:]
		for n := 1; len(rest) > 0; n = 3*n + 1 {
			chunk := rest[:min(n, len(rest))]
			if _, err := into.Write(chunk); err != nil {
				return err
			}
			rest = rest[len(chunk):]
		}
		return nil
	}}
}

// refuses is a source that must not be asked.
func refuses(t *testing.T) Source {
	t.Helper()
	return Source{Name: "head", Fetch: func(context.Context, int64, io.Writer) error {
		t.Error("it was fetched")
		return errors.New("it was fetched")
	}}
}

var errCut = errors.New("the link was cut")

// cut returns a source that fails after some bytes.
func (s Source) cut(after int) Source {
	return Source{Name: s.Name, Fetch: func(ctx context.Context, offset int64, into io.Writer) error {
		return s.Fetch(ctx, offset, &cutWriter{into: into, left: after})
	}}
}

type cutWriter struct {
	into io.Writer
	left int
}

func (w *cutWriter) Write(p []byte) (int, error) {
	n, err := w.into.Write(p[:min(len(p), w.left)])
	w.left -= n
	if err == nil && n < len(p) {
		err = errCut
	}
	return n, err
}

func open(t *testing.T, dir string, maxBytes int64) *Cache {
	t.Helper()
	c, err := Open(t.Context(), dir, maxBytes)
	require.NoError(t, err)
	t.Cleanup(c.Close)
	return c
}

// get gets a program that must be got.
func get(t *testing.T, c *Cache, p program, s Source) *Use {
	t.Helper()
	use, err := c.Get(t.Context(), p.id, s)
	require.NoError(t, err)
	t.Cleanup(use.Release)
	content, err := os.ReadFile(use.Path())
	require.NoError(t, err)
	require.True(t, bytes.Equal(p.content, content), "the content of %s", use.Path())
	info, err := os.Stat(use.Path())
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o500), info.Mode())
	return use
}

// files returns the names in a directory, without the lock of all.
func files(t require.TestingT, dir string) []string {
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	names := []string{}
	for _, e := range entries {
		if e.Name() != directoryLock {
			names = append(names, e.Name())
		}
	}
	return names
}

// complete and partial are the files of programs.
func (p program) complete() string { return nameOf(p.id) }

func (p program) partial() string { return transferName(p.id) + ".partial" }

// tamper changes a byte of a file, and nothing else but its times.
func tamper(t require.TestingT, path string) {
	content, err := os.ReadFile(path)
	require.NoError(t, err)
	content[len(content)/2] ^= 1
	info, err := os.Stat(path)
	require.NoError(t, err)
	require.NoError(t, os.Chmod(path, 0o600))
	require.NoError(t, os.WriteFile(path, content, 0o600))
	// The clock of a file system may be coarse.
	require.NoError(t, os.Chtimes(path, time.Time{}, info.ModTime().Add(1)))
	require.NoError(t, os.Chmod(path, info.Mode()))
}

func cacheDir(t *testing.T) string {
	t.Helper()
	return filepath.Join(t.TempDir(), "programs")
}

// touchModified lets a file be modified now.
func touchModified(t require.TestingT, path string) {
	require.NoError(t, os.Chtimes(path, time.Time{}, time.Now()))
}
