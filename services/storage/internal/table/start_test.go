package table

import (
	"testing"

	"github.com/stretchr/testify/require"

	storagev1 "github.com/raylink/raylink/gen/raylink/storage/v1"
)

func TestIDsBeginAfterTheStart(t *testing.T) {
	const start = 1 << 40
	table := New(Limits{Keys: 10, Bytes: 1 << 20, History: 10, HistoryBytes: 1 << 20, MaxValue: 100})
	table.StartAfter(start)
	for _, id := range []uint64{0, start - 1, start + 1} {
		_, known := table.Since(id, 1)
		require.False(t, known, "%d", id)
	}
	require.Equal(t, Usage{LastID: start, CommittedID: start, Oldest: start}, table.Usage())
	value := &storagev1.Value{Kind: &storagev1.Value_BoolValue{BoolValue: true}}
	changes, _, err := table.Apply(nil, nil, []Write{{Key: "a", Value: value}, {Key: "b", Value: value}})
	require.NoError(t, err)
	require.EqualValues(t, start+2, changes[1].ID)
	table.Rollback(start + 1)
	table.Committed(start + 1)
	changes, known := table.Since(start, 10)
	require.True(t, known)
	require.Len(t, changes, 1)
	require.Panics(t, func() { table.StartAfter(2 * start) })
}
