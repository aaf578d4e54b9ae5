package table

import (
	"math"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// listed returns the states of all items.
func listed(table *Table) []State {
	states := make([]State, 1000)
	n, _ := table.Items(0, states)
	return states[:n]
}

// TestRestoreLetsTheConfigurationWin restores into a smaller table with other selectors.
func TestRestoreLetsTheConfigurationWin(t *testing.T) {
	table := newTable(t, Config{Limiter: SamplesPerInsert(2, 3, 10)})
	var keys []Key
	for i := range 8 {
		it := rows(uint64(i))
		it.Priority = float64(i)
		keys = append(keys, insert(t, table, it)...)
	}
	sample(t, table, 5)
	_, err := table.Delete(keys[:1])
	require.NoError(t, err)
	table.Expire(2)
	meta := table.Meta()
	require.InDelta(t, 11, meta.Difference, 0)

	restored, err := Restore(Config{
		Name: "per", Sampler: Selector{Kind: Highest}, Remover: Selector{Kind: FIFO}, MaxItems: 4, Limiter: SamplesPerInsert(2, 3, 10),
	}, meta, slices.Values(listed(table)))
	require.NoError(t, err)
	require.InDelta(t, 11, restored.Meta().Difference, 0, "the limiter goes on where it was")
	require.Equal(t, 4, restored.Inspect().Size)
	for i, key := range keys {
		_, ok := restored.Get(key)
		require.Equal(t, i >= 4, ok, "the remover has removed the oldest: item %d", i)
	}
	require.Equal(t, keys[7], sample(t, restored, 1)[0].Key)
	stale, err := restored.Update(keys, slices.Repeat([]float64{9}, 8))
	require.NoError(t, err)
	require.Equal(t, 4, stale)
	require.NotContains(t, keys, insert(t, restored, rows(20))[0], "a key is not used again")

	restored, err = Restore(Config{Name: "per", MaxItems: 10, Limiter: MinSize(3)}, meta, slices.Values(listed(table)))
	require.NoError(t, err)
	require.InDelta(t, 0, restored.Meta().Difference, 0, "another limiter begins anew")
}

func TestRestoreRefusesWhatCannotBe(t *testing.T) {
	table := newTable(t, Config{})
	for i := range 3 {
		insert(t, table, rows(uint64(10+i)))
	}
	table.Expire(10)
	meta := table.Meta()
	for reason, damage := range map[string]func(s []State, m *Meta){
		"its slot 0 is that of another item":                 func(s []State, _ *Meta) { s[1].Slot = 0 },
		"its slot is 268435456":                              func(s []State, _ *Meta) { s[1].Slot = MaxItems },
		"its number is 9, and that of the last item is 3":    func(s []State, _ *Meta) { s[1].Number = 9 },
		"its number is 0":                                    func(s []State, _ *Meta) { s[1].Number = 0 },
		"its first row is 9, and those below 10 were overwr": func(s []State, _ *Meta) { s[1].Run.First = 9 },
		"its run 0 has no rows":                              func(s []State, _ *Meta) { s[1].Run.Length = 0 },
		"it must be a number":                                func(s []State, _ *Meta) { s[1].Priority = math.NaN() },
		"its limiter's difference is NaN":                    func(_ []State, m *Meta) { m.Difference = math.NaN() },
	} {
		states, m := listed(table), meta
		damage(states, &m)
		_, err := Restore(Config{Name: "per", MaxItems: 10}, m, slices.Values(states))
		require.ErrorContains(t, err, `restore table "per": `)
		require.ErrorContains(t, err, reason)
	}
	_, err := Restore(Config{Name: "per", MaxItems: 10}, meta, slices.Values(listed(table)))
	require.NoError(t, err)
}

func TestAgeSurvivesRestore(t *testing.T) {
	table := newTable(t, Config{})
	key := insert(t, table, rows(1))[0]
	states := listed(table)
	states[0].Age = time.Hour
	restored, err := Restore(Config{MaxItems: 10}, table.Meta(), slices.Values(states))
	require.NoError(t, err)
	state, ok := restored.Get(key)
	require.True(t, ok)
	require.GreaterOrEqual(t, state.Age, time.Hour)
	require.GreaterOrEqual(t, sample(t, restored, 1)[0].Age, time.Hour)
}

// TestReservedNumbersAreNotUsedAgain restores a copy that lacks the last items.
func TestReservedNumbersAreNotUsedAgain(t *testing.T) {
	table := newTable(t, Config{})
	var reserved, calls uint64
	table.Reserve(func(number uint64) { reserved, calls = number, calls+1 })
	insert(t, table, rows(1))
	meta, states := table.Meta(), listed(table)
	var keys []Key
	for i := range reserveStep + 1 {
		keys = append(keys, insert(t, table, rows(uint64(2+i)))...)
		require.GreaterOrEqual(t, reserved, table.Meta().Number)
	}
	require.Equal(t, uint64(2), calls, "numbers are reserved many at a time")

	meta.Number = reserved
	restored, err := Restore(Config{MaxItems: 10}, meta, slices.Values(states))
	require.NoError(t, err)
	require.NotContains(t, keys, insert(t, restored, rows(2))[0])
	stale, err := restored.Update(keys, make([]float64, len(keys)))
	require.NoError(t, err)
	require.Len(t, keys, stale)
	require.Equal(t, uint64(2), restored.Meta().Counts.Inserted, "numbers that were skipped do not count")
}

// TestItemsOfEarlierEpochsCanBeDrawn has a copy with an item that has not changed since an epoch
// ended in which it was drawn.
func TestItemsOfEarlierEpochsCanBeDrawn(t *testing.T) {
	config := Config{Sampler: Selector{Kind: Epoch}, MaxItems: 10}
	table := newTable(t, config)
	keys := insert(t, table, rows(1), rows(2))
	sample(t, table, 2)
	states := listed(table)
	drawn := sample(t, table, 1)[0].Key // in the second epoch
	for i := range states {
		if states[i].Key() == drawn {
			states[i], _ = table.Get(drawn)
		}
	}
	restored, err := Restore(config, table.Meta(), slices.Values(states))
	require.NoError(t, err)
	other := keys[0]
	if other == drawn {
		other = keys[1]
	}
	require.Equal(t, other, sample(t, restored, 1)[0].Key, "the one that was not drawn in this epoch")
	require.Equal(t, uint64(1), restored.Meta().Epoch)
}
