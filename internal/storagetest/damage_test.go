package storagetest

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/raylink/raylink/internal/proctest"
)

// damages are what is done to a file.
var damages = []struct {
	name string
	edit func(path string, content []byte) error
}{
	{"removed", func(path string, _ []byte) error { return os.Remove(path) }},
	{"emptied", func(path string, _ []byte) error { return os.Truncate(path, 0) }},
	{"cut", func(path string, b []byte) error { return os.Truncate(path, int64(len(b)/2)) }},
	{"changed at its begin", flip(func(int) int { return 0 })},
	{"changed in its middle", flip(func(n int) int { return n / 2 })},
	{"changed at its end", flip(func(n int) int { return n - 1 })},
	{"overwritten", func(path string, b []byte) error {
		return os.WriteFile(path, []byte(strings.Repeat("?", len(b))), 0o600)
	}},
}

// flip changes a byte of a file.
func flip(at func(size int) int) func(path string, content []byte) error {
	return func(path string, content []byte) error {
		if len(content) > 0 {
			content[at(len(content))] ^= 0xff
		}
		return os.WriteFile(path, content, 0o600)
	}
}

// dataFiles returns the files of a directory, relative to it.
func dataFiles(t *testing.T, dir string) []string {
	t.Helper()
	var found []string
	require.NoError(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			found = append(found, strings.TrimPrefix(path, dir+"/"))
		}
		return err
	}))
	return found
}

// A storage whose data are damaged does not start, and says what is damaged. It may start if it has
// lost nothing.
func TestDamagedStoreIsNotOpened(t *testing.T) {
	const keys = 300
	s := newSystem(t, "async")
	s.silent = true // the processes log what is damaged
	p := s.worker()
	dir := filepath.Join(s.dir, "store")
	create := func(dir string) answer { return p.Do(order{Do: "create", Durability: "async", Directory: dir}) }
	// The store has been opened several times, and ended in both ways.
	var last uint64
	for life := range 3 {
		a := create(dir)
		require.Empty(t, a.Error)
		for i := range keys {
			last = p.Must(order{Do: "put", Storage: a.Path, Key: fmt.Sprint("key/", i), Value: fmt.Sprint(life, "/", i), Size: 100}).Write
		}
		if life == 1 {
			proctest.Kill(t, p.Must(order{Do: "info", Storage: a.Path}).PID)
		} else {
			p.Must(order{Do: "end", Storage: a.Path})
		}
	}
	files := dataFiles(t, dir)
	t.Logf("files: %q", files)
	open := func(what string, damage func(dir string)) (opened bool) {
		t.Helper()
		damaged := filepath.Join(s.dir, "damaged")
		require.NoError(t, os.CopyFS(damaged, os.DirFS(dir)))
		damage(damaged)
		a := create(damaged)
		if a.Error != "" {
			require.Contains(t, a.Error, damaged, "%s: the error does not name the directory", what)
			require.Equal(t, "data_loss", a.Code, "%s: %s", what, a.Error)
		} else {
			opened = true
			state := p.Must(order{Do: "state", Storage: a.Path})
			require.Equal(t, last, state.Last, "%s: writes are lost, and the storage starts", what)
			require.Len(t, state.Read.Entries, keys, "%s: keys are lost, and the storage starts", what)
			for _, e := range state.Read.Entries {
				want := "2" + strings.TrimPrefix(e.Key, "key") + strings.Repeat(".", 100)
				require.Equal(t, want, e.Value, "%s: %s has another value, and the storage starts", what, e.Key)
			}
			p.Must(order{Do: "end", Storage: a.Path})
		}
		require.NoError(t, os.RemoveAll(damaged))
		return opened
	}
	for _, file := range files {
		noticed := 0
		for _, d := range damages {
			if !open(file+" is "+d.name, func(dir string) {
				content, err := os.ReadFile(filepath.Join(dir, file))
				require.NoError(t, err)
				require.NoError(t, d.edit(filepath.Join(dir, file), content))
			}) {
				noticed++
			}
		}
		switch ext := filepath.Ext(file); {
		case ext == ".sst", ext == ".log": // the end of a log has nothing
			require.GreaterOrEqual(t, noticed, len(damages)-1, "damage of %s is not noticed", file)
		case file == "WATERMARK": // one of its two halves suffices
			require.Positive(t, noticed, "damage of %s is not noticed", file)
		}
		if file == "LOCK" { // which has nothing of a store: it may be a new one
			continue
		}
		open("all but "+file+" are removed", func(dir string) {
			for _, other := range files {
				if other != file {
					require.NoError(t, os.Remove(filepath.Join(dir, other)))
				}
			}
		})
	}
	require.True(t, open("nothing is damaged", func(string) {}))
}

// A directory is of one storage at a time. It is free when that has ended or was killed.
func TestDirectoryIsOfOneStorage(t *testing.T) {
	s := newSystem(t, "async")
	s.silent = true // the processes log that the directory is in use
	p := s.worker()
	dir := filepath.Join(s.dir, "store")
	create := order{Do: "create", Durability: "async", Directory: dir}
	for _, kill := range []bool{false, true, false} {
		first := p.Must(create)
		pid := p.Must(order{Do: "info", Storage: first.Path}).PID
		second := p.Do(create)
		require.Contains(t, second.Error, dir)
		require.Contains(t, second.Error, strconv.Itoa(pid), "the error does not name the process that uses the directory")
		if kill {
			proctest.Kill(t, pid)
		} else {
			p.Must(order{Do: "end", Storage: first.Path})
		}
	}
}
