package replay

import (
	"testing"

	"github.com/stretchr/testify/require"

	replayv1 "github.com/raylink/raylink/gen/raylink/replay/v1"
	"github.com/raylink/raylink/gen/raylink/replay/v1/replayv1raylink"
	tensorv1 "github.com/raylink/raylink/gen/raylink/tensor/v1"
	"github.com/raylink/raylink/runtime/row"
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
