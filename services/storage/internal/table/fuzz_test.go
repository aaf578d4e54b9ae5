package table_test

import (
	"maps"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	storagev1 "github.com/raylink/raylink/gen/raylink/storage/v1"
	"github.com/raylink/raylink/services/storage/internal/table"
)

// FuzzRestore restores arbitrary records: each is refused and changes nothing, or the table has
// what protobuf decodes, and encodes it again.
func FuzzRestore(f *testing.F) {
	s := table.New(unlimited)
	for _, v := range []*storagev1.Value{
		int64Value(-1), stringValue("text"), bytesValue([]byte{0, 0xff}), jsonValue([]any{1.0, nil}),
		messageValue(&storagev1.GetRequest{Key: "k"}), nil,
	} {
		changes, _, err := s.Apply(nil, nil, []table.Write{{Key: "key", Value: v, Expires: 1_500_000_000}})
		require.NoError(f, err)
		f.Add(changes[0].AppendProto(nil), changes[0].AppendProto(nil))
	}
	f.Fuzz(func(t *testing.T, first, second []byte) {
		s, expected := table.New(defaults), make(map[string]*storagev1.Change)
		for _, record := range [][]byte{first, second} {
			c := new(storagev1.Change)
			decoded := proto.Unmarshal(record, c)
			before := s.Usage()
			if s.Restore(c.GetId(), record) != nil {
				require.Equal(t, before, s.Usage())
				continue
			}
			require.NoError(t, decoded)
			e, ok := s.Get(c.GetKey())
			require.Equal(t, c.GetValue() != nil, ok)
			if ok {
				requireEntry(t, c, e)
			}
			if expected[c.GetKey()] = c; c.GetValue() == nil {
				delete(expected, c.GetKey())
			}
			changes, ok := s.Since(c.GetId()-1, 1)
			require.True(t, ok)
			again := new(storagev1.Change)
			require.NoError(t, proto.Unmarshal(changes[0].AppendProto(nil), again))
			require.True(t, proto.Equal(again, changes[0].Proto()))
			require.Equal(t, c.GetKey(), again.GetKey())
			require.Equal(t, c.GetExpired(), again.GetExpired())
		}
		var keys []string
		for e := range s.Scan("", "", false) {
			keys = append(keys, e.Key)
			require.Equal(t, expected[e.Key].GetId(), e.ID)
		}
		require.Equal(t, slices.Sorted(maps.Keys(expected)), keys)
	})
}
