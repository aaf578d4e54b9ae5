package replay

import (
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	replayv1 "github.com/raylink/raylink/gen/raylink/replay/v1"
	"github.com/raylink/raylink/gen/raylink/replay/v1/replayv1raylink"
	tensorv1 "github.com/raylink/raylink/gen/raylink/tensor/v1"
	"github.com/raylink/raylink/runtime/row"
	"github.com/raylink/raylink/services/internal/mapfile"
	"github.com/raylink/raylink/services/replay/internal/table"
	"github.com/raylink/raylink/services/replay/ring"
)

type blobColumns struct{ Data []uint8 }

// BenchmarkTypedAppend writes rows of 1 KiB, one by one, into a ring that fits into the processor's
// cache.
func BenchmarkTypedAppend(b *testing.B) {
	rows := row.Type[blobColumns]{Generated: &row.GeneratedRow[blobColumns]{
		Message: "test.Blob",
		Columns: []row.GeneratedColumn{{Name: "data", DType: tensorv1.DataType_DATA_TYPE_UINT8, Shape: []uint64{1024}, Bytes: 1024}},
		View:    func(c *blobColumns, columns [][]byte) { c.Data = row.GeneratedView[uint8](columns[0]) },
	}}
	n, err := newNode(b.TempDir(), "the-nid", &replayv1.ReplayConfig{Columns: rows.Columns(), Capacity: 1000})
	require.NoError(b, err)
	p, err := Open(b.Context(), replayv1raylink.NewLocalReplay(n), rows)
	require.NoError(b, err)
	w, err := p.Writer()
	require.NoError(b, err)
	payload := make([]byte, 1024)
	fill := func(rows *blobColumns) { copy(rows.Data, payload) }
	ctx := b.Context()
	b.SetBytes(1024)
	b.ReportAllocs()
	for b.Loop() {
		if err := w.Append(ctx, 1, fill); err != nil {
			b.Fatal(err)
		}
	}
	require.NoError(b, p.Close())
	require.NoError(b, n.close())
}

// copied returns a replay of 64 MiB of rows of 1 KiB, with an item of each.
func copied(b *testing.B) (*node, *replayv1.ReplayConfig) {
	b.Helper()
	config := &replayv1.ReplayConfig{
		Columns: []*tensorv1.Column{Column[uint8]("data", 1024)}, Capacity: 1 << 16, Tables: []*replayv1.TableConfig{Table("per", Prioritized(1))},
	}
	n := emptyNode(b, b.TempDir(), config)
	n.log = slog.New(slog.DiscardHandler)
	batch, err := ring.NewBatch(n.ring.Layout(), 1<<10)
	require.NoError(b, err)
	for i := range uint64(64) {
		_, err := n.writer.TryAppend(batch)
		require.NoError(b, err)
		for k := range uint64(1 << 10) {
			item := table.Item{Run: table.Run{First: i<<10 + k, Length: 1}, Priority: 1}
			_, err := n.tables.byName["per"].TryInsert("", []table.Item{item}, make([]table.Key, 1))
			require.NoError(b, err)
		}
	}
	return n, config
}

// BenchmarkCheckpoint writes checkpoints. The other one writes as many bytes to a file, and waits
// until they are on the disk.
func BenchmarkCheckpoint(b *testing.B) {
	n, _ := copied(b)
	defer func() { require.NoError(b, n.close()) }()
	directory := b.TempDir()
	target := filepath.Join(directory, "c")
	b.Run("checkpoint", func(b *testing.B) {
		b.SetBytes(64 << 20)
		b.ReportAllocs()
		for b.Loop() {
			_, err := n.checkpoint(b.Context(), target, silent)
			require.NoError(b, err)
			require.NoError(b, os.RemoveAll(target))
		}
	})
	b.Run("bare", func(b *testing.B) {
		block := make([]byte, 4<<20)
		b.SetBytes(64 << 20)
		for b.Loop() {
			f, err := os.Create(target)
			require.NoError(b, err)
			for range 16 {
				_, err := f.Write(block)
				require.NoError(b, err)
			}
			require.NoError(b, errors.Join(f.Sync(), f.Close(), os.Remove(target)))
		}
	})
}

// BenchmarkRestore restores a checkpoint, with the creation of the replay. The other one reads the
// file of the rows into a ring's file, which it creates.
func BenchmarkRestore(b *testing.B) {
	n, config := copied(b)
	defer func() { require.NoError(b, n.close()) }()
	target := filepath.Join(b.TempDir(), "c")
	_, err := n.checkpoint(b.Context(), target, silent)
	require.NoError(b, err)
	directory := b.TempDir()
	b.Run("restore", func(b *testing.B) {
		b.SetBytes(64 << 20)
		b.ReportAllocs()
		for b.Loop() {
			again := emptyNode(b, directory, config)
			again.log = n.log
			_, err := again.restore(b.Context(), target)
			require.NoError(b, err)
			require.NoError(b, again.close())
		}
	})
	b.Run("bare", func(b *testing.B) {
		b.SetBytes(64 << 20)
		for b.Loop() {
			again := emptyNode(b, directory, config)
			rows, err := os.Open(filepath.Join(target, "rows"))
			require.NoError(b, err)
			file, size, err := mapfile.Open(again.ring.Path())
			require.NoError(b, err)
			mapping, err := mapfile.Map(file, uint64(size), mapfile.ReadWrite)
			require.NoError(b, err)
			_, err = io.ReadFull(rows, mapping[size-64<<20:])
			require.NoError(b, err)
			require.NoError(b, errors.Join(mapfile.Unmap(mapping), file.Close(), rows.Close(), again.close()))
		}
	})
}
