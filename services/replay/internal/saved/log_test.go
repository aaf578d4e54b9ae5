package saved

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/raylink/raylink/services/replay/internal/table"
)

var errFull = errors.New("the disk is full")

// disk is one that may be full.
type disk struct{ full bool }

// limited is a file of a disk. If that is full, a part of a write fits.
type limited struct {
	*os.File

	disk *disk
}

func (f limited) WriteAt(b []byte, offset int64) (int, error) {
	if !f.disk.full {
		return f.File.WriteAt(b, offset)
	}
	n, err := f.File.WriteAt(b[:len(b)/2], offset)
	return n, errors.Join(err, errFull)
}

// logRun is a table with a log.
type logRun struct {
	fileRun

	log  *Log
	path string
	disk disk
	// states are those that the file may have: that of the last call of Save that succeeded, and of
	// those that failed since.
	states   []commit
	rewrites int
}

func (r *logRun) limit(log *Log) {
	r.log = log
	log.create = func(path string) (file, error) {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
		r.rewrites++
		return limited{f, &r.disk}, err
	}
	log.out.file = limited{log.out.file.(*os.File), &r.disk}
	// Small parts, so that everything takes several.
	log.least, log.together, log.states, log.rewriteSize, log.rewriteTime = len(r.buffer), len(r.buffer), log.states[:len(r.buffer)], 100, 0
}

func (r *logRun) now(t *rapid.T) commit {
	return commit{items: items(t, r.table), meta: r.table.Meta()}
}

func (r *logRun) save(t *rapid.T) {
	state := r.now(t)
	if err := r.log.Save(); err != nil {
		require.ErrorIs(t, err, errFull)
		r.states = append(r.states, state)
		return
	}
	r.states = []commit{state}
}

// kill goes on with what the file has.
func (r *logRun) kill(t *rapid.T) {
	require.NoError(t, r.log.out.file.Close())
	if r.log.next != nil {
		require.NoError(t, r.log.next.out.file.Close()) // the file stays
	}
	content := r.read(t)
	restored, err := content.Tables[0].Restore(r.config)
	require.NoError(t, err)
	require.True(t, slices.ContainsFunc(r.states, func(c commit) bool {
		return c.meta == restored.Meta() && sameItems(c.items, items(t, restored))
	}), "the file has another state than those of the last %d saves", len(r.states))
	r.table.Close(nil)
	r.table = restored
	r.states = []commit{r.now(t)}
	sources := []Source{{Name: r.config.Name, Table: restored}}
	var log *Log
	if rapid.Bool().Draw(t, "resume") {
		log, err = Resume(r.path, content, sources)
	} else {
		log, err = Create(r.path, content.Owner, sources)
	}
	require.NoError(t, err)
	r.limit(log)
}

func sameItems(a, b map[table.Key]table.State) bool {
	for key, s := range a {
		other, ok := b[key]
		if !ok || !slices.Equal(s.More, other.More) {
			return false
		}
		s.More, other.More = nil, nil
		if s.Run != other.Run || s.Priority != other.Priority || s.Sampled != other.Sampled || s.Drawn != other.Drawn {
			return false
		}
	}
	return len(a) == len(b)
}

func (r *logRun) read(t *rapid.T) *Content {
	f, err := os.Open(r.path)
	require.NoError(t, err)
	info, err := f.Stat()
	require.NoError(t, err)
	content, err := Read(f, info.Size())
	require.NoError(t, err)
	require.NoError(t, f.Close())
	require.Equal(t, "ring", string(content.Owner))
	return content
}

// TestLogMatchesTable saves a table on a disk that is full at times, and kills the process that
// does.
func TestLogMatchesTable(t *testing.T) {
	rewrites := 0
	rapid.Check(t, func(t *rapid.T) {
		dir, err := os.MkdirTemp("", "log") //nolint:usetesting // one for each check
		require.NoError(t, err)
		defer os.RemoveAll(dir) //nolint:errcheck // a temporary directory
		r := &logRun{path: filepath.Join(dir, "items"), fileRun: fileRun{config: table.Config{
			Name: "per", Sampler: table.Selector{Kind: table.Epoch}, Remover: table.Selector{Kind: table.FIFO}, MaxItems: 12,
			Limiter: table.SamplesPerInsert(2, 2, 1e6),
		}, buffer: make([]table.State, rapid.IntRange(1, 4).Draw(t, "together"))}}
		r.table, err = table.New(r.config)
		require.NoError(t, err)
		log, err := Create(r.path, []byte("ring"), []Source{{Name: "per", Table: r.table}})
		require.NoError(t, err)
		r.limit(log)
		r.states = []commit{r.now(t)}
		t.Repeat(map[string]func(*rapid.T){
			"insert": r.insert, "sample": r.sample, "update": r.update, "delete": r.remove, "expire": r.expire,
			"save": r.save, "save2": r.save, "save3": r.save, "kill": r.kill,
			"disk": func(t *rapid.T) { r.disk.full = rapid.Bool().Draw(t, "full") },
		})
		r.disk.full = false
		r.save(t)
		require.Len(t, r.states, 1)
		r.kill(t)
		require.NoError(t, r.log.Close())
		rewrites += r.rewrites
	})
	require.Positive(t, rewrites)
}

// TestNothingIsSavedIfNothingHasChanged checks that saving an idle table costs nothing.
func TestNothingIsSavedIfNothingHasChanged(t *testing.T) {
	config := table.Config{Name: "per", MaxItems: 10}
	of, err := table.New(config)
	require.NoError(t, err)
	log, err := Create(filepath.Join(t.TempDir(), "items"), nil, []Source{{Name: "per", Table: of}})
	require.NoError(t, err)
	_, err = of.TryInsert("", []table.Item{{Run: table.Run{Length: 1}}}, make([]table.Key, 1))
	require.NoError(t, err)
	require.NoError(t, log.Save())
	size := log.Size()
	require.NoError(t, log.Save())
	require.Equal(t, size, log.Size())
	require.NoError(t, log.Close())
}
