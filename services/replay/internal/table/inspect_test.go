package table

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func TestRatesAreThoseOfTheLastSeconds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tb, err := New(Config{Name: "t", MaxItems: 100})
		require.NoError(t, err)
		insert := func(n int) {
			items := make([]Item, n)
			for i := range items {
				items[i] = Item{Run: Run{First: 1, Length: 1}, Priority: 1}
			}
			_, err := tb.TryInsert("", items, make([]Key, n))
			require.NoError(t, err)
		}
		require.Zero(t, tb.Inspect().Rates.Inserts)
		time.Sleep(500 * time.Millisecond) //nolint:forbidigo // the clock of a bubble
		insert(10)
		_, err = tb.TrySample(make([]Sample, 30), SampleOptions{})
		require.NoError(t, err)
		require.Equal(t, Rates{Window: 500 * time.Millisecond, Inserts: 20, Samples: 60}, tb.Inspect().Rates)
		time.Sleep(4500 * time.Millisecond) //nolint:forbidigo // the clock of a bubble
		insert(10)
		require.Equal(t, Rates{Window: 5 * time.Second, Inserts: 4, Samples: 6}, tb.Inspect().Rates)
		time.Sleep(6 * time.Second) //nolint:forbidigo // the clock of a bubble
		require.Equal(t, Rates{Window: 9 * time.Second, Inserts: 10. / 9}, tb.Inspect().Rates)
		time.Sleep(time.Hour) //nolint:forbidigo // the clock of a bubble
		require.Equal(t, Rates{Window: 9 * time.Second}, tb.Inspect().Rates)
		insert(9)
		require.Equal(t, Rates{Window: 9 * time.Second, Inserts: 1}, tb.Inspect().Rates)
	})
}

func TestItemsAreListedThoughManySlotsAreFree(t *testing.T) {
	const n = 3*visited + 5
	tb, err := New(Config{Name: "t", MaxItems: n})
	require.NoError(t, err)
	items, keys := make([]Item, n), make([]Key, n)
	for i := range items {
		items[i] = Item{Run: Run{First: uint64(i), Length: 1}, Priority: 1}
	}
	_, err = tb.TryInsert("", items, keys)
	require.NoError(t, err)
	tb.Expire(n - 2) // only the last two are left
	require.Equal(t, 2, tb.Len())
	states := make([]State, 10)
	found, next := tb.Items(0, states)
	require.Equal(t, 2, found)
	require.Equal(t, []Key{states[0].Key(), states[1].Key()}, keys[n-2:])
	found, _ = tb.Items(next, states)
	require.Zero(t, found)
	found, _ = tb.Items(0, states[:1])
	require.Equal(t, 1, found)
}
