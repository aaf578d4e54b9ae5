package ring

import (
	"context"
	"slices"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestRowsAreReadByTheirSequenceNumbers(t *testing.T) {
	r := newRing(t, testLayout(10))
	h, err := r.Reader()
	require.NoError(t, err)
	into, err := NewBatch(r.Layout(), 3)
	require.NoError(t, err)
	testRows(into, seeded()) // what was in the batch does not matter
	lost, err := h.At(t.Context(), []uint64{0, NoRow, 7}, into)
	require.NoError(t, err)
	require.Equal(t, []int{0, 2}, lost)
	oldest, err := r.Oldest(t.Context())
	require.NoError(t, err)
	require.Zero(t, oldest)

	write(t, r, 14)
	oldest, err = r.Oldest(t.Context())
	require.NoError(t, err)
	require.Equal(t, uint64(4), oldest)
	testRows(into, seeded())
	lost, err = h.At(t.Context(), []uint64{3, 13, 4, NoRow, 13, 14, maxSequence + 1}, into)
	require.NoError(t, err)
	require.Equal(t, []int{0, 5, 6}, lost)
	require.Equal(t, []uint64{NoRow, 13, 4, NoRow, 13, NoRow, NoRow}, into.Sequences())
	for _, i := range []int{0, 3, 5, 6} {
		require.Equal(t, make([]byte, 2000), into.Bytes(0)[2000*i:2000*(i+1)], "row %d", i)
	}
	require.Equal(t, 4, torn(into), "only the empty ones")
	require.Equal(t, into.Bytes(0)[2000:4000], into.Bytes(0)[8000:10000])

	ended, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = h.At(ended, []uint64{13}, into)
	require.ErrorIs(t, err, context.Canceled)
	require.Zero(t, into.Rows())
	other, err := NewBatch(Layout{Columns: []Column{{Name: "x", DType: Bool}}}, 0)
	require.NoError(t, err)
	_, err = h.At(t.Context(), []uint64{13}, other)
	require.ErrorIs(t, err, ErrBatch)
	require.NoError(t, r.End())
	_, err = h.At(t.Context(), []uint64{13}, into)
	require.ErrorIs(t, err, ErrEnded)
	_, err = r.Oldest(t.Context())
	require.ErrorIs(t, err, ErrEnded)
}

// TestRowsReadByNumberAreNeverTornNorOthers reads the oldest rows while a writer overwrites them.
func TestRowsReadByNumberAreNeverTornNorOthers(t *testing.T) {
	r := newRing(t, testLayout(16))
	write(t, r, 16)
	var writer sync.WaitGroup
	stop := make(chan struct{})
	writer.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			if _, err := writeRows(r, task{Rows: 1, Batch: 1}); err != nil {
				t.Error(err)
				return
			}
		}
	})
	defer writer.Wait()
	defer close(stop)
	h, err := r.Reader()
	require.NoError(t, err)
	into, err := NewBatch(r.Layout(), 0)
	require.NoError(t, err)
	var before uint64
	read, missing := 0, 0
	for read < 3000 || missing < 300 {
		oldest, err := r.Oldest(t.Context())
		require.NoError(t, err)
		require.GreaterOrEqual(t, oldest, before)
		before = oldest
		wanted := []uint64{oldest, oldest + 1, oldest + 2}
		lost, err := h.At(t.Context(), wanted, into)
		require.NoError(t, err)
		require.Equal(t, len(lost), torn(into))
		for i, s := range into.Sequences() {
			if !slices.Contains(lost, i) {
				require.Equal(t, wanted[i], s)
			}
		}
		read, missing = read+3-len(lost), missing+len(lost)
	}
}

// endsLater is a context that ends after it was asked once.
type endsLater struct {
	context.Context //nolint:containedctx // what it is but for its end

	asked bool
}

func (c *endsLater) Done() <-chan struct{} {
	done := make(chan struct{})
	close(done)
	return done
}

func (c *endsLater) Err() error {
	if c.asked {
		return context.Canceled
	}
	c.asked = true
	return nil
}

// TestRowsThatChangeAreNotLostWhenTheContextEnds reads a row that is being changed when the context
// ends: the row exists.
func TestRowsThatChangeAreNotLostWhenTheContextEnds(t *testing.T) {
	r := newRing(t, testLayout(10))
	write(t, r, 5)
	h, err := r.Reader()
	require.NoError(t, err)
	into, err := NewBatch(r.Layout(), 0)
	require.NoError(t, err)
	at := r.wordAt(r.rows, 3)
	before := at.Swap(uint64(writingWord(3, r.self)))
	lost, err := h.At(&endsLater{Context: t.Context()}, []uint64{2, 3}, into)
	require.ErrorIs(t, err, context.Canceled, "lost: %v", lost)
	at.Store(before)
	lost, err = h.At(t.Context(), []uint64{2, 3}, into)
	require.NoError(t, err)
	require.Empty(t, lost)
}
