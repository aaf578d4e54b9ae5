package replay

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect/v2"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	nodev1 "github.com/raylink/raylink/gen/raylink/node/v1"
	replayv1 "github.com/raylink/raylink/gen/raylink/replay/v1"
	"github.com/raylink/raylink/internal/leaktest"
	"github.com/raylink/raylink/services/replay/internal/table"
	"github.com/raylink/raylink/services/replay/ring"
)

// fileConfig is a replay with a file.
func fileConfig(t *testing.T, tables ...*replayv1.TableConfig) *replayv1.ReplayConfig {
	t.Helper()
	leaktest.Check(t)
	config := testConfig(100)
	config.File, config.Tables = filepath.Join(t.TempDir(), "ring"), tables
	return config
}

// openFileNode creates a node with a file. It is closed at the end of the test, if it is not
// before.
func openFileNode(t *testing.T, config *replayv1.ReplayConfig, log *bytes.Buffer) *node {
	t.Helper()
	leaktest.Check(t)
	if log == nil {
		log = &bytes.Buffer{}
	}
	n, err := openNode(config, &nodev1.NodeRef{Nid: "the-nid", Path: "replay-0"}, slog.New(slog.NewTextHandler(log, nil)))
	if errors.Is(err, ring.ErrUnsupported) {
		t.Skip(err)
	}
	require.NoError(t, err)
	t.Cleanup(func() {
		if err := n.close(); !errors.Is(err, ring.ErrClosed) && !errors.Is(err, fs.ErrClosed) {
			require.NoError(t, err)
		}
	})
	return n
}

// kill leaves of a node what its process would if it were killed.
func kill(t *testing.T, n *node) {
	t.Helper()
	n.file.cancel()
	n.file.saver.Wait()
	require.NoError(t, n.file.log.Close())
	require.NoError(t, n.ring.Close())
	require.NoError(t, n.file.own.close())
}

// createItems creates an item of each row.
func createItems(t *testing.T, n *node, tableName string, rows ...uint64) []uint64 {
	t.Helper()
	req := &replayv1.CreateItemsRequest{Table: tableName, RingId: n.ring.ID().String()}
	for _, row := range rows {
		req.Items = append(req.Items, &replayv1.Item{Runs: []*replayv1.Run{{First: row, Length: 1}}, Priority: new(float64(row))})
	}
	res, err := n.CreateItems(t.Context(), req)
	require.NoError(t, err)
	require.Len(t, res.GetKeys(), len(rows))
	return res.GetKeys()
}

func TestNextNodeTakesOverTheFile(t *testing.T) {
	config := fileConfig(t, Table("per", Prioritized(1)))
	for name, end := range map[string]func(*testing.T, *node){
		"killed": func(t *testing.T, n *node) {
			t.Helper()
			n.file.save()
			kill(t, n)
		},
		"closed": func(t *testing.T, n *node) {
			t.Helper()
			require.NoError(t, n.close())
		},
	} {
		t.Run(name, func(t *testing.T) {
			config.File = filepath.Join(t.TempDir(), "ring")
			first := openFileNode(t, config, nil)
			m := &restartable{first}
			c := open(t, m)
			w, h := c.Writer(), c.Reader(nil)
			ctx := t.Context()
			_, err := w.Append(ctx, rowsOf(t, c, 1, 2, 3))
			require.NoError(t, err)
			area, err := h.Hold(ctx, 2)
			require.NoError(t, err)
			keys := createItems(t, first, "per", 0, 1, 2)
			_, err = first.UpdatePriorities(ctx, &replayv1.UpdatePrioritiesRequest{Table: "per", Keys: keys[1:2], Priorities: []float64{7}})
			require.NoError(t, err)
			before := first.tables.byName["per"].Meta()
			mapped := c.mapping.Load().ring

			m.ReplayNode = unavailable{}
			end(t, first)
			c.mapping.Load().seen.Add(-int64(recheckInterval))
			_, err = w.Append(ctx, rowsOf(t, c, 4))
			require.ErrorContains(t, err, "no longer served")
			require.Equal(t, 2, area.Len(), "areas stay valid")

			second := openFileNode(t, config, nil)
			require.Equal(t, first.ring.ID(), second.ring.ID())
			_, err = w.Append(ctx, rowsOf(t, c, 4))
			require.NoError(t, err, "heads go on, though the client can't call the node")
			require.Same(t, mapped, c.mapping.Load().ring)
			m.ReplayNode = second
			into, err := c.NewBatch(0)
			require.NoError(t, err)
			require.NoError(t, h.Newest(ctx, 9, into))
			require.Equal(t, []int64{1, 2, 3, 4}, numbersOf(t, into))
			require.Equal(t, []int64{2, 3}, numbersOf(t, area.Spans()[0]))
			require.NoError(t, area.Release())

			after := second.tables.byName["per"].Meta()
			require.Equal(t, before.Counts, after.Counts)
			require.Equal(t, before.Limiter, after.Limiter)
			for i, priority := range []float64{0, 7, 2} {
				s, ok := second.tables.byName["per"].Get(table.Key(keys[i]))
				require.True(t, ok)
				require.InDelta(t, priority, s.Priority, 0)
			}
			require.NotContains(t, keys, createItems(t, second, "per", 3)[0])
		})
	}
}

// TestKeysOfLostItemsAreStale kills a node before it has saved its last items.
func TestKeysOfLostItemsAreStale(t *testing.T) {
	config := fileConfig(t, Table("per", Prioritized(1)))
	first := openFileNode(t, config, nil)
	c := open(t, first)
	write(t, c, 1, 2, 3)
	createItems(t, first, "per", 0)
	first.file.save()
	// The goroutine that saves may save the others, too.
	first.file.cancel()
	first.file.saver.Wait()
	lost := createItems(t, first, "per", 1, 2)
	kill(t, first)
	second := openFileNode(t, config, nil)
	again := createItems(t, second, "per", 1, 2)
	require.NotContains(t, again, lost[0])
	require.NotContains(t, again, lost[1])
	res, err := second.UpdatePriorities(t.Context(), &replayv1.UpdatePrioritiesRequest{Table: "per", Keys: lost, Priorities: []float64{9, 9}})
	require.NoError(t, err)
	require.EqualValues(t, 2, res.GetStale())
}

func TestItemsOfRowsOverwrittenInTheGapHaveLeft(t *testing.T) {
	config := fileConfig(t, Table("per", Prioritized(1)))
	first := openFileNode(t, config, nil)
	c := open(t, first)
	write(t, c, 1, 2)
	keys := createItems(t, first, "per", 0, 1)
	first.file.save()
	r, err := ring.Open(config.GetFile(), first.ring.ID())
	require.NoError(t, err)
	w, err := r.Writer()
	require.NoError(t, err)
	kill(t, first)
	for i := range 100 {
		_, err := w.TryAppend(rowsOf(t, c, int64(i)))
		require.NoError(t, err, "a mapping needs no node")
	}
	require.NoError(t, r.Close())
	second := openFileNode(t, config, nil)
	res, err := second.UpdatePriorities(t.Context(), &replayv1.UpdatePrioritiesRequest{Table: "per", Keys: keys, Priorities: []float64{9, 9}})
	require.NoError(t, err)
	require.EqualValues(t, 2, res.GetStale())
	stats, err := second.ring.Stats()
	require.NoError(t, err)
	require.EqualValues(t, 102, stats.Written)
}

func TestConfigurationOfTheCodeWins(t *testing.T) {
	config := fileConfig(t, Table("a", FIFO(), MaxItems(10), MinSize(2)), Table("gone", FIFO()), Table("b", FIFO(), MinSize(2)))
	first := openFileNode(t, config, nil)
	write(t, open(t, first), 1, 2, 3)
	keys := createItems(t, first, "a", 0, 1, 2)
	createItems(t, first, "gone", 0)
	createItems(t, first, "b", 1)
	for _, name := range []string{"a", "b"} {
		_, err := first.SetLimiter(t.Context(), &replayv1.SetLimiterRequest{Table: name, Limiter: &replayv1.Limiter{MinSize: 3}})
		require.NoError(t, err)
	}
	require.NoError(t, first.close())

	config.Tables = []*replayv1.TableConfig{
		Table("new", FIFO()), Table("b", FIFO(), MinSize(2)), Table("a", FIFO(), MaxItems(2), SamplesPerInsert(1, 1, 5)),
	}
	var log bytes.Buffer
	second := openFileNode(t, config, &log)
	require.Contains(t, log.String(), `"max_items: 10 became 2"`)
	require.Contains(t, log.String(), "limiter: min_size:2 became rule:LIMITER_RULE_SAMPLES_PER_INSERT")
	require.Contains(t, log.String(), "table=gone items=1")
	require.Contains(t, log.String(), "does not have the table, which is empty\" file="+config.GetFile()+".items table=new")
	require.Equal(t, 1, second.tables.byName["b"].Inspect().Size)
	require.Equal(t, 3, second.tables.byName["b"].Inspect().Limiter.MinSize, "that of SetLimiter stays")
	a := second.tables.byName["a"].Inspect()
	require.Equal(t, 2, a.Size)
	require.Equal(t, table.PerInsert, a.Limiter.Rule)
	_, ok := second.tables.byName["a"].Get(table.Key(keys[0]))
	require.False(t, ok, "the remover has removed the oldest")
	require.Zero(t, second.tables.byName["new"].Inspect().Size)
	require.Greater(t, createItems(t, second, "new", 0)[0], keys[2], "keys of a table that has gone are not used again")
}

// contents returns the files of a directory.
func contents(t *testing.T, directory string) map[string]string {
	t.Helper()
	entries, err := os.ReadDir(directory)
	require.NoError(t, err)
	files := make(map[string]string)
	for _, e := range entries {
		files[e.Name()] = e.Type().String()
		if e.Type().IsRegular() {
			b, err := os.ReadFile(filepath.Join(directory, e.Name()))
			require.NoError(t, err)
			files[e.Name()] = string(b)
		}
	}
	return files
}

// TestFilesThatCannotBeUsedAreRefused damages a file in every way, over both ways.
func TestFilesThatCannotBeUsedAreRefused(t *testing.T) {
	patch := func(suffix string, at int64, change func([]byte)) func(*testing.T, *replayv1.ReplayConfig) {
		return func(t *testing.T, config *replayv1.ReplayConfig) {
			t.Helper()
			f, err := os.OpenFile(config.GetFile()+suffix, os.O_RDWR, 0)
			require.NoError(t, err)
			b := make([]byte, 200)
			_, err = f.ReadAt(b, at)
			require.NoError(t, err)
			change(b)
			_, err = f.WriteAt(b, at)
			require.NoError(t, err)
			require.NoError(t, f.Close())
		}
	}
	for name, c := range map[string]struct {
		damage func(t *testing.T, config *replayv1.ReplayConfig)
		want   error
		texts  []string
	}{
		"other columns": {func(_ *testing.T, config *replayv1.ReplayConfig) {
			config.Columns[1] = Column[float32]("xy", 3)
		}, ring.ErrLayout, []string{"xy float32[3]", "xy float32[2]"}},
		"another capacity": {func(_ *testing.T, config *replayv1.ReplayConfig) {
			config.Capacity = 101
		}, ring.ErrLayout, []string{"room for 101 rows", "for 100"}},
		"another boot": {patch("", 0, func(b []byte) {
			b[40] ^= 1
			ringChecksum(b)
		}), ring.ErrOtherMachine, []string{"booted", "restore a checkpoint"}},
		"another version": {patch("", 0, func(b []byte) { b[8]++ }), ring.ErrFormat, []string{"version 3", "only version 2"}},
		"damaged":         {patch("", 0, func(b []byte) { b[50] ^= 1 }), ring.ErrFormat, []string{"checksum"}},
		"no ring":         {patch("", 0, func(b []byte) { b[0] = 'x' }), ring.ErrFormat, []string{"magic"}},
		"zeroed":          {patch("", 0, func(b []byte) { clear(b) }), ring.ErrFormat, []string{"magic"}},
		"truncated": {func(t *testing.T, config *replayv1.ReplayConfig) {
			t.Helper()
			require.NoError(t, os.Truncate(config.GetFile(), 5000))
		}, ring.ErrFormat, []string{"5000 bytes instead of"}},
		"for others": {func(t *testing.T, config *replayv1.ReplayConfig) {
			t.Helper()
			require.NoError(t, os.Chmod(config.GetFile(), 0o640))
		}, ring.ErrForeign, []string{"mode 0640"}},
		"items for others": {func(t *testing.T, config *replayv1.ReplayConfig) {
			t.Helper()
			require.NoError(t, os.Chmod(config.GetFile()+itemsSuffix, 0o640))
		}, ring.ErrForeign, []string{"mode 0640"}},
		"no items": {func(t *testing.T, config *replayv1.ReplayConfig) {
			t.Helper()
			require.NoError(t, os.Remove(config.GetFile()+itemsSuffix))
		}, ring.ErrFormat, []string{"the file of its items is missing"}},
		"items of another version": {patch(itemsSuffix, 0, func(b []byte) { b[7]++ }), ring.ErrFormat, []string{"version 2", "only version 1"}},
		"damaged items":            {patch(itemsSuffix, 0, func(b []byte) { b[45] ^= 1 }), ring.ErrFormat, []string{".items: damaged: the record at byte"}},
		"items of another ring": {func(t *testing.T, config *replayv1.ReplayConfig) {
			t.Helper()
			other := proto.CloneOf(config)
			other.File += "2"
			require.NoError(t, openFileNode(t, other, nil).close())
			require.NoError(t, os.Rename(other.GetFile()+itemsSuffix, config.GetFile()+itemsSuffix))
		}, ring.ErrFormat, []string{"is that of another ring"}},
		"empty": {func(t *testing.T, config *replayv1.ReplayConfig) {
			t.Helper()
			require.NoError(t, os.Truncate(config.GetFile(), 0))
		}, ring.ErrFormat, []string{"wrong magic number"}},
		"longer": {func(t *testing.T, config *replayv1.ReplayConfig) {
			t.Helper()
			info, err := os.Stat(config.GetFile())
			require.NoError(t, err)
			require.NoError(t, os.Truncate(config.GetFile(), info.Size()+4096))
		}, ring.ErrFormat, []string{"bytes instead of"}},
		"of another ring": {func(t *testing.T, config *replayv1.ReplayConfig) {
			t.Helper()
			other := proto.CloneOf(config)
			other.File += "2"
			n := openFileNode(t, other, nil)
			write(t, open(t, n), 1)
			createItems(t, n, "per", 0)
			require.NoError(t, n.close())
			require.NoError(t, os.Rename(other.GetFile(), config.GetFile()))
		}, ring.ErrFormat, []string{"ring.items, is that of another ring"}},
		"another user's":         {ofAnotherUser(""), ring.ErrForeign, []string{"owner 12345"}},
		"another user's items":   {ofAnotherUser(itemsSuffix), ring.ErrForeign, []string{"owner 12345"}},
		"another user's node":    {ofAnotherUser(nodeSuffix), ring.ErrForeign, []string{"owner 12345"}},
		"a pipe":                 {replacedBy("", makePipe), ring.ErrForeign, []string{"not a regular file"}},
		"a pipe of items":        {replacedBy(itemsSuffix, makePipe), ring.ErrForeign, []string{"not a regular file"}},
		"a pipe of the node":     {replacedBy(nodeSuffix, makePipe), ring.ErrForeign, []string{"not a regular file"}},
		"a link":                 {replacedBy("", makeLink), ring.ErrForeign, []string{"symbolic link"}},
		"a link to items":        {replacedBy(itemsSuffix, makeLink), ring.ErrForeign, []string{"symbolic link"}},
		"a link to the node":     {replacedBy(nodeSuffix, makeLink), ring.ErrForeign, []string{"symbolic link"}},
		"a directory of items":   {replacedBy(itemsSuffix, makeDirectory), nil, []string{"directory"}},
		"a directory of nodes":   {replacedBy(nodeSuffix, makeDirectory), nil, []string{"directory"}},
		"a link to nothing":      {replacedBy("", makeDanglingLink), ring.ErrForeign, []string{"symbolic link"}},
		"no items in the file":   {truncatedItems(0), ring.ErrFormat, []string{"is not complete"}},
		"items without a begin":  {truncatedItems(5), ring.ErrFormat, []string{"is not complete"}},
		"items without a commit": {truncatedItems(100), ring.ErrFormat, []string{"is not complete"}},
		"zeros behind the items": {func(t *testing.T, config *replayv1.ReplayConfig) {
			t.Helper()
			info, err := os.Stat(config.GetFile() + itemsSuffix)
			require.NoError(t, err)
			require.NoError(t, os.Truncate(config.GetFile()+itemsSuffix, info.Size()+50))
		}, ring.ErrFormat, []string{".items: damaged: the record at byte"}},
		"a directory": {func(_ *testing.T, config *replayv1.ReplayConfig) {
			config.File = filepath.Dir(config.GetFile())
		}, nil, []string{"directory"}},
		"in no directory": {func(_ *testing.T, config *replayv1.ReplayConfig) {
			config.File += ".d/ring"
		}, fs.ErrNotExist, []string{"ring.d/ring.node: no such file or directory"}},
	} {
		t.Run(name, func(t *testing.T) {
			config := fileConfig(t, Table("per", Prioritized(1)))
			first := openFileNode(t, config, nil)
			client := open(t, first)
			write(t, client, 1, 2)
			createItems(t, first, "per", 0, 1)
			require.NoError(t, first.close())
			require.NoError(t, client.Close())
			directory := filepath.Dir(config.GetFile())
			c.damage(t, config)
			before := contents(t, directory)
			_, err := openNode(config, &nodev1.NodeRef{}, slog.New(slog.DiscardHandler))
			require.Equal(t, before, contents(t, directory), "nothing is changed")
			var file *FileError
			require.ErrorAs(t, err, &file)
			require.Equal(t, config.GetFile(), file.Path)
			if c.want != nil {
				require.ErrorIs(t, err, c.want)
			}
			for _, text := range c.texts {
				require.ErrorContains(t, err, text)
			}
			remote := CreateError(encoded(t, err))
			require.ErrorAs(t, remote, &file, "an error that lost its Go value")
			require.Equal(t, err.(interface{ Unwrap() error }).Unwrap().Error(), remote.Error())
			if c.want != nil && !errors.Is(c.want, fs.ErrNotExist) {
				require.ErrorIs(t, remote, c.want)
			}
		})
	}
}

// ofAnotherUser gives a file to another user.
func ofAnotherUser(suffix string) func(*testing.T, *replayv1.ReplayConfig) {
	return func(t *testing.T, config *replayv1.ReplayConfig) {
		t.Helper()
		if os.Geteuid() != 0 {
			t.Skip("only root can give away files")
		}
		require.NoError(t, os.Chown(config.GetFile()+suffix, 12345, -1))
	}
}

// replacedBy replaces a file, whose content moves elsewhere.
func replacedBy(suffix string, replace func(t *testing.T, path, moved string)) func(*testing.T, *replayv1.ReplayConfig) {
	return func(t *testing.T, config *replayv1.ReplayConfig) {
		t.Helper()
		path, moved := config.GetFile()+suffix, filepath.Join(t.TempDir(), "moved")
		require.NoError(t, os.Rename(path, moved))
		replace(t, path, moved)
	}
}

func makeLink(t *testing.T, path, moved string) {
	t.Helper()
	require.NoError(t, os.Symlink(moved, path))
}

func makeDanglingLink(t *testing.T, path, moved string) {
	t.Helper()
	require.NoError(t, os.Symlink(moved+"2", path))
}

func makePipe(t *testing.T, path, _ string) {
	t.Helper()
	require.NoError(t, syscall.Mkfifo(path, 0o600))
}

func makeDirectory(t *testing.T, path, _ string) {
	t.Helper()
	require.NoError(t, os.Mkdir(path, 0o700))
}

// truncatedItems leaves the beginning of the items.
func truncatedItems(size int64) func(*testing.T, *replayv1.ReplayConfig) {
	return func(t *testing.T, config *replayv1.ReplayConfig) {
		t.Helper()
		require.NoError(t, os.Truncate(config.GetFile()+itemsSuffix, size))
	}
}

// TestItemsAreThoseOfTheLastCompleteSave cuts off the file of items in and behind its last save, as
// where the process was killed while it wrote: all of it counts, or nothing.
func TestItemsAreThoseOfTheLastCompleteSave(t *testing.T) {
	config := fileConfig(t, Table("per", FIFO()))
	n := openFileNode(t, config, nil)
	n.file.cancel()
	n.file.saver.Wait()
	write(t, open(t, n), 1, 2)
	createItems(t, n, "per", 0)
	n.file.save()
	before := n.file.log.Size()
	createItems(t, n, "per", 1)
	n.file.save()
	after := n.file.log.Size()
	kill(t, n)
	whole, err := os.ReadFile(config.GetFile() + itemsSuffix)
	require.NoError(t, err)
	require.Len(t, whole, int(after))
	for size := before; size <= after; size++ {
		require.NoError(t, os.WriteFile(config.GetFile()+itemsSuffix, whole[:size], 0o600))
		want := 1
		if size == after {
			want = 2
		}
		next, err := openNode(config, &nodev1.NodeRef{}, slog.New(slog.DiscardHandler))
		require.NoError(t, err, "%d of %d bytes", size, after)
		next.file.cancel()
		next.file.saver.Wait()
		require.Equal(t, want, next.tables.byName["per"].Len(), "%d of %d bytes", size, after)
		kill(t, next)
	}
}

func TestFileInUseIsRefused(t *testing.T) {
	config := fileConfig(t)
	first := openFileNode(t, config, nil)
	_, err := openNode(config, &nodev1.NodeRef{}, slog.New(slog.DiscardHandler))
	require.ErrorIs(t, err, ring.ErrInUse)
	require.ErrorContains(t, err, "in use by the node replay-0 (the-nid)")
	// Without that file, the ring's lock counts.
	require.NoError(t, os.Remove(config.GetFile()+nodeSuffix))
	_, err = openNode(config, &nodev1.NodeRef{}, slog.New(slog.DiscardHandler))
	require.ErrorIs(t, err, ring.ErrInUse)
	require.NoFileExists(t, config.GetFile()+nodeSuffix)
	write(t, open(t, first), 1)
}

// TestUnfinishedFileIsMadeAnew has what a node leaves behind that is killed while it creates its
// ring.
func TestUnfinishedFileIsMadeAnew(t *testing.T) {
	config := fileConfig(t, Table("per", FIFO()))
	require.NoError(t, os.WriteFile(config.GetFile(), make([]byte, 5000), 0o600))
	require.NoError(t, os.WriteFile(config.GetFile()+nodeSuffix, nil, 0o600))
	n := openFileNode(t, config, nil)
	write(t, open(t, n), 1)
	kill(t, n)
	require.NoError(t, os.Remove(config.GetFile()+itemsSuffix)) // as if killed before it was made
	n = openFileNode(t, config, nil)
	createItems(t, n, "per", 0)
}

// ringChecksum sets the checksum of a ring's header.
func ringChecksum(header []byte) {
	length := binary.LittleEndian.Uint32(header[12:])
	sum := crc32.Checksum(header[20:length], crc32.MakeTable(crc32.Castagnoli))
	binary.LittleEndian.PutUint32(header[16:], sum)
}

// encoded returns an error as another process gets it: with its code, text and details.
func encoded(t *testing.T, err error) error {
	t.Helper()
	var known *connect.Error
	require.ErrorAs(t, err, &known)
	bare := connect.NewError(known.Code(), known.Message())
	for _, detail := range known.Details() {
		bare = bare.WithDetail(detail)
	}
	return bare
}

// TestLateSavesAreLogged saves items after more than a second, several times.
func TestLateSavesAreLogged(t *testing.T) {
	config := fileConfig(t, Table("per", FIFO()))
	var log bytes.Buffer
	n := openFileNode(t, config, &log)
	n.file.cancel()
	n.file.saver.Wait()
	saveAfter := func(d time.Duration) {
		n.file.since = time.Now().Add(-d)
		n.file.save()
	}
	saveAfter(maxAge / 2)
	require.NotContains(t, log.String(), "late")
	saveAfter(2 * maxAge)
	saveAfter(2 * maxAge)
	require.Equal(t, 1, bytes.Count(log.Bytes(), []byte("saved late")), log.String())
	saveAfter(0)
	saveAfter(2 * maxAge)
	require.Equal(t, 2, bytes.Count(log.Bytes(), []byte("saved late")), log.String())
}
