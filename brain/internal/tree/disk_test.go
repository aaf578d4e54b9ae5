package tree

import (
	"iter"
	"maps"
	"slices"

	"github.com/stretchr/testify/require"

	nodev1 "github.com/raylink/raylink/gen/raylink/node/v1"
	"github.com/raylink/raylink/internal/nodename"
)

func testRoot() *nodev1.NodeRecord {
	return &nodev1.NodeRecord{Nid: "00000000-0000-4000-8000-000000000000", Name: nodename.RootPath, Path: nodename.RootPath}
}

// disk simulates the store: entries by key.
type disk map[string][]byte

func (d disk) write(t require.TestingT, x *Txn) {
	writes, err := x.Writes()
	require.NoError(t, err)
	for _, w := range writes {
		if w.Value == nil {
			delete(d, w.Key)
		} else {
			d[w.Key] = w.Value
		}
	}
}

func (d disk) entries() iter.Seq2[Write, error] {
	return func(yield func(Write, error) bool) {
		for _, key := range slices.Sorted(maps.Keys(d)) {
			if !yield(Write{Key: key, Value: d[key]}, nil) {
				return
			}
		}
	}
}
