package table

import (
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	storagev1 "github.com/raylink/raylink/gen/raylink/storage/v1"
)

func TestSkippedIdsEndTheHistory(t *testing.T) {
	table := New(Limits{Keys: 10, Bytes: 1 << 20, History: 10, HistoryBytes: 1 << 20, MaxValue: 100})
	one := &storagev1.Value{Kind: &storagev1.Value_Int64Value{Int64Value: 1}}
	for id := uint64(1); id <= 5; id++ {
		encoded, err := proto.Marshal(&storagev1.Change{Id: id, Key: "a", Value: one})
		require.NoError(t, err)
		require.NoError(t, table.Restore(id, encoded))
	}
	table.Skip(3)
	require.EqualValues(t, 5, table.LastID(), "nothing is skipped")
	table.Skip(100)
	require.EqualValues(t, 100, table.LastID())
	for id := range uint64(100) { // those from 6 on may have been seen, and are lost
		_, known := table.Since(id, 10)
		require.False(t, known, "a watcher resumes from %d", id)
	}
	e, ok := table.Get("a")
	require.True(t, ok)
	require.EqualValues(t, 5, e.ID)
	changes, _, err := table.Apply(nil, nil, []Write{{Key: "a", Value: one}})
	require.NoError(t, err)
	require.EqualValues(t, 101, changes[0].ID)
	table.Committed(101)
	changes, known := table.Since(100, 10)
	require.True(t, known)
	require.Len(t, changes, 1)
	_, removed, err := table.Apply(nil, nil, []Write{{Key: "b", Value: one}})
	require.NoError(t, err)
	require.Contains(t, removed, uint64(5), "it is not needed any more")
}
