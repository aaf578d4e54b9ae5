package saved

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/raylink/raylink/services/replay/internal/table"
)

// busy is a file. While it is written, all items change.
type busy struct {
	*os.File

	change func()
}

func (f busy) WriteAt(b []byte, offset int64) (int, error) {
	<-time.After(10 * time.Millisecond)
	f.change()
	return f.File.WriteAt(b, offset)
}

// fullTable returns a table of items, and their keys.
func fullTable(t *testing.T, name string, size int) (*table.Table, []table.Key) {
	t.Helper()
	of, err := table.New(table.Config{Name: name, MaxItems: size})
	require.NoError(t, err)
	items, keys := make([]table.Item, size), make([]table.Key, size)
	for i := range items {
		items[i] = table.Item{Run: table.Run{First: uint64(i), Length: 1}, Priority: 1}
	}
	n, err := of.TryInsert("", items, keys)
	require.NoError(t, err)
	require.Equal(t, size, n)
	return of, keys
}

// TestSavingIsBoundedThoughItemsAlwaysChange saves several tables that change as fast as they are
// saved. Their age is bounded, and so each call is.
func TestSavingIsBoundedThoughItemsAlwaysChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const size = 1200
		sources := make([]Source, 3)
		keys := make([][]table.Key, len(sources))
		for i := range sources {
			sources[i].Name = fmt.Sprint("table-", i)
			sources[i].Table, keys[i] = fullTable(t, sources[i].Name, size)
		}
		priority, priorities := 1.0, make([]float64, size)
		change := func() {
			priority++
			for i := range priorities {
				priorities[i] = priority
			}
			for i, s := range sources {
				_, err := s.Table.Update(keys[i], priorities)
				require.NoError(t, err)
			}
		}
		path := filepath.Join(t.TempDir(), "items")
		log, err := Create(path, nil, sources)
		require.NoError(t, err)
		log.create = func(path string) (file, error) {
			f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
			return busy{f, change}, err
		}
		log.most, log.least, log.together, log.flushSize, log.rewriteSize = 1000, 1000, 1000, 1, 0
		log.out.file = busy{log.out.file.(*os.File), change}
		rewritten := false
		for range 4 {
			change()
			before, begin := priority, time.Now()
			require.NoError(t, log.Save())
			require.LessOrEqual(t, time.Since(begin), 450*time.Millisecond)
			rewritten = rewritten || log.next != nil
			content := readFile(t, path)
			for _, table := range content.Tables {
				fresh := 0
				for s := range table.Items(time.Now()) {
					if s.Priority >= before {
						fresh++
					}
				}
				require.GreaterOrEqual(t, fresh, log.least, "each call saves some items of %s", table.Name)
			}
		}
		require.True(t, rewritten)
		require.NoError(t, log.Close())
	})
}

// TestManyChangesAreCollectedTogether saves many changes without many turns at the table's lock,
// and does not keep the memory that this takes in use.
func TestManyChangesAreCollectedTogether(t *testing.T) {
	of, keys := fullTable(t, "per", 100_000)
	log, err := Create(filepath.Join(t.TempDir(), "items"), nil, []Source{{Name: "per", Table: of}})
	require.NoError(t, err)
	_, err = of.Update(keys, make([]float64, len(keys)))
	require.NoError(t, err)
	require.NoError(t, log.Save())
	require.Equal(t, mostTogether, log.together)
	for range 10 {
		require.NoError(t, log.Save())
	}
	require.Equal(t, together, log.together)
	require.NoError(t, log.Close())
}

func readFile(t *testing.T, path string) *Content {
	t.Helper()
	f, err := os.Open(path)
	require.NoError(t, err)
	info, err := f.Stat()
	require.NoError(t, err)
	content, err := Read(f, info.Size())
	require.NoError(t, err)
	require.NoError(t, f.Close())
	return content
}
