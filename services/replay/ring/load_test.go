package ring

import (
	"encoding/binary"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/raylink/raylink/services/internal/mapfile"
)

// numbers returns a column with a number for each of some sequence numbers: the sum of both.
func numbers(sequences []uint64, plus uint64) [][]byte {
	var b []byte
	for _, s := range sequences {
		b = binary.LittleEndian.AppendUint64(b, s+plus)
	}
	return [][]byte{b}
}

// rowsByNumber returns the readable rows of a ring with one column.
func rowsByNumber(t *testing.T, r *Ring) map[uint64]uint64 {
	t.Helper()
	h, err := r.Reader()
	require.NoError(t, err)
	b, err := NewBatch(r.Layout(), 0)
	require.NoError(t, err)
	rows := map[uint64]uint64{}
	if err := h.Newest(t.Context(), int(r.Layout().Capacity), b); err != nil {
		require.ErrorIs(t, err, ErrEmpty)
	}
	for i, s := range b.Sequences() {
		rows[s] = binary.LittleEndian.Uint64(b.Bytes(0)[8*i:])
	}
	return rows
}

func wordsOf(r *Ring) map[uint64]bool {
	words := make(map[uint64]bool)
	for slot := range r.Layout().Capacity {
		if w := r.wordAt(r.all, slot).Load(); w != 0 {
			words[w] = true
		}
	}
	return words
}

func TestLoadedRowsHaveTheirNumbers(t *testing.T) {
	r := newRing(t, oneColumn(10))
	l, err := r.Load(1000)
	require.NoError(t, err)
	_, err = r.Load(1000)
	require.ErrorIs(t, err, ErrNotEmpty)
	require.ErrorIs(t, l.Put([]uint64{995}, [][]byte{{1}}), ErrBatch)
	require.ErrorIs(t, l.Put([]uint64{995}, nil), ErrBatch)
	sequences := []uint64{5, 989, 990, 991, 995, 996, 999} // the ring has no room for the first two
	require.NoError(t, l.Put(sequences, numbers(sequences, 7)))
	require.ErrorIs(t, l.Put([]uint64{991}, numbers([]uint64{991}, 0)), ErrBatch)
	require.ErrorIs(t, l.Put([]uint64{1000}, numbers([]uint64{1000}, 0)), ErrBatch)
	require.EqualValues(t, 5, l.Rows())
	require.True(t, l.Has(990, 2))
	require.False(t, l.Has(990, 3))
	require.False(t, l.Has(989, 1))
	require.False(t, l.Has(999, 2))
	require.Empty(t, rowsByNumber(t, r), "nothing is readable yet")
	other := reopen(t, r)
	w, b := writerOf(t, other, 1)
	for range 3 {
		_, err = w.TryAppend(b)
		require.ErrorIs(t, err, ErrNoRoom, "writers wait")
	}
	require.NoError(t, l.Commit())
	require.ErrorIs(t, l.Commit(), ErrClosed)
	require.NoError(t, l.Abort())
	require.Equal(t, map[uint64]uint64{990: 997, 991: 998, 995: 1002, 996: 1003, 999: 1006}, rowsByNumber(t, other))
	_, err = w.TryAppend(b)
	require.NoError(t, err)
	require.Equal(t, []uint64{1000}, b.Sequences())
	stats, err := r.Stats()
	require.NoError(t, err)
	require.Equal(t, [3]uint64{6, 5, 0}, [3]uint64{stats.Written, stats.Readable, stats.Held}, "row 1000 took the place of 990")
	_, err = r.Load(1000)
	require.ErrorIs(t, err, ErrNotEmpty)
	_, err = other.Load(1)
	require.ErrorIs(t, err, ErrInUse)
}

func TestAbortedLoadLeavesAnEmptyRing(t *testing.T) {
	r := newRing(t, oneColumn(10))
	w, b := writerOf(t, reopen(t, r), 1)
	for _, next := range []uint64{0, 1, 30} {
		l, err := r.Load(next)
		require.NoError(t, err)
		if next > 0 {
			require.NoError(t, l.Put([]uint64{next - 1}, numbers([]uint64{next - 1}, 0)))
		}
		for range 3 {
			_, err = w.TryAppend(b)
			require.ErrorIs(t, err, ErrNoRoom)
		}
		require.NoError(t, l.Abort())
		require.Empty(t, rowsByNumber(t, r))
	}
	_, err := w.TryAppend(b)
	require.NoError(t, err)
	require.Equal(t, []uint64{0}, b.Sequences(), "no number was lost")
}

// TestTakeOverOfARingThatWasBeingFilled kills the process that fills a ring at each step. Before
// another node takes it over, no process can write; after that it is empty or complete.
func TestTakeOverOfARingThatWasBeingFilled(t *testing.T) {
	first := []uint64{20, 21, 25, 28}
	before := func(t *testing.T, l *Loader) {
		t.Helper()
		require.NoError(t, l.Put(first, numbers(first, 100)))
	}
	for name, c := range map[string]struct {
		until    func(t *testing.T, l *Loader)
		complete bool
	}{
		"begun":  {func(*testing.T, *Loader) {}, false},
		"loaded": {before, false},
		"partly readable": {func(t *testing.T, l *Loader) {
			t.Helper()
			before(t, l)
			l.publish()
			at := l.ring.wordAt(l.ring.rows, 5)
			at.Store(0)
			l.ring.counter(counterHead).Store(30)
		}, false},
		"readable": {func(t *testing.T, l *Loader) {
			t.Helper()
			before(t, l)
			l.publish()
		}, false},
		"complete": {func(t *testing.T, l *Loader) {
			t.Helper()
			before(t, l)
			l.publish()
			l.ring.counter(counterLoading).Or(uint64(loaded))
		}, true},
		"released": {func(t *testing.T, l *Loader) {
			t.Helper()
			before(t, l)
			l.publish()
			l.ring.counter(counterLoading).Or(uint64(loaded))
			l.ring.releaseEntry(l.entry, l.mark)
		}, true},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRing(t, oneColumn(10))
			other := reopen(t, r)
			w, b := writerOf(t, other, 1)
			l, err := r.Load(29)
			require.NoError(t, err)
			defer func() { require.NoError(t, r.letGo()) }()
			c.until(t, l)
			words := wordsOf(r)
			require.NoError(t, mapfile.Unlock(r.file, r.participantOffset(ownerIndex))) // as if killed
			r.self = noParticipant
			if name != "released" {
				for range 3 {
					_, err = w.TryAppend(b)
					require.ErrorIs(t, err, ErrNoRoom)
				}
				_, err = other.Holders()
				require.NoError(t, err)
			}
			killed, err := other.Loading()
			require.NoError(t, err)
			require.Equal(t, !c.complete, killed)

			again, err := TakeOver(r.Path(), accept)
			require.NoError(t, err)
			t.Cleanup(func() { require.NoError(t, again.Close()) })
			loading, err := again.Loading()
			require.NoError(t, err)
			require.False(t, loading)
			stats, err := again.Stats()
			require.NoError(t, err)
			require.Zero(t, stats.Areas)
			if c.complete {
				require.Equal(t, map[uint64]uint64{20: 120, 21: 121, 25: 125, 28: 128}, rowsByNumber(t, other))
				require.EqualValues(t, 4, stats.Written)
				_, err = w.TryAppend(b)
				require.NoError(t, err)
				require.Equal(t, []uint64{29}, b.Sequences())
				return
			}
			require.Empty(t, rowsByNumber(t, other))
			require.Equal(t, [2]uint64{}, [2]uint64{stats.Written, stats.Readable})
			l, err = again.Load(29) // the head is that of a new ring
			require.NoError(t, err)
			require.NoError(t, l.Put(first[:2], numbers(first[:2], 500)))
			require.NoError(t, l.Commit())
			require.Equal(t, map[uint64]uint64{20: 520, 21: 521}, rowsByNumber(t, other))
			for word := range wordsOf(again) {
				require.NotContains(t, words, word, "a word never recurs with other contents")
			}
			_, err = w.TryAppend(b)
			require.NoError(t, err)
			require.Equal(t, []uint64{29}, b.Sequences())
		})
	}
}
