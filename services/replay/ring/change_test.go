package ring

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// allColumns are those of testLayout.
func allColumns() []int { return []int{0, 1, 2} }

// changesOf returns changes of all columns of rows, from a batch that has as many.
func changesOf(sequences ...uint64) []RowChange {
	changes := make([]RowChange, len(sequences))
	for i, s := range sequences {
		changes[i] = RowChange{Sequence: s, Row: i, Columns: allColumns()}
	}
	return changes
}

// newRows returns a batch of rows with correct checksums.
func newRows(t testing.TB, r *Ring, n int) *Batch {
	t.Helper()
	b, err := NewBatch(r.Layout(), n)
	require.NoError(t, err)
	testRows(b, rand.New(rand.NewPCG(rand.Uint64(), 0)))
	return b
}

// changeRows changes random rows until it has changed enough of them.
func changeRows(r *Ring, p task) (result, error) {
	w, err := r.Writer()
	if err != nil {
		return result{}, err
	}
	b, err := NewBatch(r.Layout(), p.Batch)
	if err != nil {
		return result{}, err
	}
	rng := rand.New(rand.NewPCG(p.Seed, 0))
	var o result
	for o.Rows < p.Rows {
		testRows(b, rng)
		changes := changesOf(make([]uint64, p.Batch)...)
		head := r.counter(counterHead).Load()
		for i := range changes {
			changes[i].Sequence = head - 1 - rng.Uint64N(min(head, r.Layout().Capacity))
		}
		lost, err := w.TryChange(changes, b)
		if err != nil && !errors.Is(err, ErrHeld) && !errors.Is(err, ErrChanged) {
			return o, err
		}
		if o.Rows == 0 {
			report(result{Ready: true})
		}
		o.Rows += p.Batch - len(lost)
	}
	return o, nil
}

// stopMidChange begins to change the newest row, and waits for a line before it finishes.
func stopMidChange(r *Ring, p task) (result, error) {
	w, err := r.Writer()
	if err != nil {
		return result{}, err
	}
	b, err := NewBatch(r.Layout(), 1)
	if err != nil {
		return result{}, err
	}
	testRows(b, rand.New(rand.NewPCG(p.Seed, 0)))
	sequence := r.counter(counterHead).Load() - 1
	at := r.wordAt(r.rows, sequence%r.Layout().Capacity)
	old := word(at.Load())
	at.Store(uint64(writingWord(sequence, r.self)))
	c := r.head.geometry.columns[0]
	copy(r.rows[c.offset+sequence%r.Layout().Capacity*c.size:][:c.size/2], b.Bytes(0))
	if err := waitForInput(); err != nil {
		return result{}, err
	}
	w.fill(sequence, b, 0)
	at.Store(uint64(old.changed()))
	return result{Rows: 1}, nil
}

func TestChangesOverwriteTheirColumns(t *testing.T) {
	r := newRing(t, testLayout(4))
	write(t, r, 6)
	w, err := r.Writer()
	require.NoError(t, err)
	h, err := r.Reader()
	require.NoError(t, err)
	before, err := NewBatch(r.Layout(), 0)
	require.NoError(t, err)
	into, err := NewBatch(r.Layout(), 0)
	require.NoError(t, err)
	all := []uint64{2, 3, 4, 5}
	_, err = h.At(t.Context(), all, before)
	require.NoError(t, err)

	from := newRows(t, r, 3)
	lost, err := w.Change(t.Context(), []RowChange{
		{Sequence: 1, Row: 0, Columns: allColumns()}, // overwritten
		{Sequence: 3, Row: 2, Columns: []int{1}},
		{Sequence: 4, Row: 1, Columns: allColumns()},
		{Sequence: 5, Row: 1},
		{Sequence: 6, Row: 0, Columns: allColumns()}, // not written yet
		{Sequence: NoRow, Row: 0, Columns: allColumns()},
	}, from)
	require.NoError(t, err)
	require.Equal(t, []int{0, 4, 5}, lost)
	lost, err = h.At(t.Context(), all, into)
	require.NoError(t, err)
	require.Empty(t, lost)
	for c := range allColumns() {
		require.Equal(t, before.row(c, 0), into.row(c, 0))
		require.Equal(t, from.row(c, 1), into.row(c, 2))
		require.Equal(t, before.row(c, 3), into.row(c, 3))
	}
	require.Equal(t, before.row(0, 1), into.row(0, 1))
	require.Equal(t, from.row(1, 2), into.row(1, 1))
	require.Equal(t, before.row(2, 1), into.row(2, 1))

	for _, bad := range []RowChange{{Sequence: 3, Row: 3}, {Sequence: 3, Row: -1}, {Sequence: 3, Columns: []int{3}}, {Sequence: 3, Columns: []int{-1}}} {
		_, err = w.Change(t.Context(), append(changesOf(2), bad), from)
		require.ErrorIs(t, err, ErrBatch)
	}
	other, err := NewBatch(Layout{Columns: []Column{{Name: "x", DType: Bool}}}, 1)
	require.NoError(t, err)
	_, err = w.Change(t.Context(), changesOf(2), other)
	require.ErrorIs(t, err, ErrBatch)
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = w.Change(ended, changesOf(2), from)
	require.ErrorIs(t, err, context.Canceled)
	_, err = h.At(t.Context(), all[:1], into)
	require.NoError(t, err)
	require.Equal(t, before.row(0, 0), into.row(0, 0), "nothing was changed")

	// Areas and newer rows take changed rows for what they are.
	area, err := h.Hold(t.Context(), 4)
	require.NoError(t, err)
	require.Equal(t, 4, area.Rows())
	require.NoError(t, area.Release())
	write(t, r, 4)
	_, err = h.At(t.Context(), []uint64{6, 7, 8, 9}, into)
	require.NoError(t, err)
	require.Zero(t, torn(into))
	require.NoError(t, r.End())
	_, err = w.Change(t.Context(), changesOf(9), from)
	require.ErrorIs(t, err, ErrEnded)
}

// TestRowsChangeALimitedNumberOfTimes shows that a word never recurs with other contents.
func TestRowsChangeALimitedNumberOfTimes(t *testing.T) {
	r := newRing(t, Layout{Capacity: 2, Columns: []Column{{Name: "x", DType: Uint8}}})
	write(t, r, 2)
	w, err := r.Writer()
	require.NoError(t, err)
	b, err := NewBatch(r.Layout(), 1)
	require.NoError(t, err)
	seen := map[uint64]bool{r.wordAt(r.rows, 1).Load(): true}
	for range maxChanges {
		_, err := w.TryChange([]RowChange{{Sequence: 1, Columns: []int{0}}}, b)
		require.NoError(t, err)
		at := r.wordAt(r.rows, 1).Load()
		require.False(t, seen[at])
		require.True(t, word(at).holds(1))
		seen[at] = true
	}
	lost, err := w.TryChange([]RowChange{{Sequence: 7}, {Sequence: 1, Columns: []int{0}}}, b)
	require.ErrorIs(t, err, ErrChanged)
	require.Equal(t, []int{0}, lost)
	write(t, r, 2)
	_, err = w.TryChange([]RowChange{{Sequence: 3, Columns: []int{0}}}, b)
	require.NoError(t, err, "the next row there can be changed")
}

func TestRowsOfAreasDoNotChange(t *testing.T) {
	r := newRing(t, testLayout(8))
	write(t, r, 8)
	w, err := r.Writer()
	require.NoError(t, err)
	h, err := r.Reader()
	require.NoError(t, err)
	area, err := h.Hold(t.Context(), 3)
	require.NoError(t, err)
	from := newRows(t, r, 3)
	held, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	lost, err := w.Change(held, changesOf(4, 5, 6), from)
	var blocked *HeldError
	require.ErrorAs(t, err, &blocked)
	require.ErrorIs(t, err, ErrHeld)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.Empty(t, lost)
	require.Equal(t, []int{1, 3, 5}, []int{blocked.Done, blocked.Rows, int(blocked.Sequence)})
	require.Len(t, blocked.Holders, 1)
	require.Equal(t, os.Getpid(), blocked.Holders[0].PID)
	require.GreaterOrEqual(t, blocked.Waited, 20*time.Millisecond)
	require.ErrorContains(t, err, "1 of 3 rows changed")

	done := make(chan error, 1)
	go func() {
		_, err := w.Change(t.Context(), changesOf(5, 6), from)
		done <- err
	}()
	require.Never(t, func() bool { return len(done) > 0 }, 20*time.Millisecond, 5*time.Millisecond)
	require.NoError(t, area.Release())
	require.NoError(t, <-done)
	into, err := NewBatch(r.Layout(), 0)
	require.NoError(t, err)
	_, err = h.At(t.Context(), []uint64{5, 6}, into)
	require.NoError(t, err)
	require.Equal(t, from.row(0, 0), into.row(0, 0))
	require.Equal(t, from.row(0, 1), into.row(0, 1))
}

// TestChangesAreNeverTorn changes, overwrites, copies and holds the same few rows from several
// mappings at the same time.
func TestChangesAreNeverTorn(t *testing.T) {
	first := newRing(t, testLayout(16))
	write(t, first, 16)
	stop := make(chan struct{})
	var others sync.WaitGroup
	for i := range uint64(3) {
		r, err := Open(first.Path(), first.ID())
		require.NoError(t, err)
		others.Go(func() {
			for round := uint64(0); ; round++ {
				select {
				case <-stop:
					if err := r.Close(); err != nil {
						t.Error(err)
					}
					return
				default:
				}
				var err error
				if i < 2 {
					err = changeSome(r, i+round)
				} else {
					_, err = writeRows(r, task{Rows: 1, Batch: 1})
				}
				if err != nil && !errors.Is(err, ErrNoRoom) {
					t.Error(err)
					return
				}
			}
		})
	}
	defer others.Wait()
	defer close(stop)
	h, err := first.Reader()
	require.NoError(t, err)
	into, err := NewBatch(first.Layout(), 0)
	require.NoError(t, err)
	rng := seeded()
	for read := 0; read < 2000; {
		head := first.counter(counterHead).Load()
		sequences := []uint64{head - 3, head - 2, head - 1, head - 8}
		lost, err := h.At(t.Context(), sequences, into)
		require.NoError(t, err)
		require.Equal(t, len(lost), torn(into))
		read += len(sequences) - len(lost)
		require.NoError(t, h.Sample(t.Context(), rng, 4, into))
		require.Zero(t, torn(into))
		o, err := holdRows(first, task{Rows: 3, Batch: 3})
		require.NoError(t, err)
		require.Zero(t, o.Torn, "rows of an area do not change")
	}
}

// TestLargeRowsAreNotReadHalfway changes a row of a size that takes a while to copy, until it was
// read often enough while that happened.
// changeLargeRow changes the newest row, which has one column, over and over.
func changeLargeRow(r *Ring, p task) (result, error) {
	b, err := NewBatch(r.Layout(), p.Batch)
	if err != nil {
		return result{}, err
	}
	size := len(b.Bytes(0)) / p.Batch
	for i := range b.Bytes(0) {
		b.Bytes(0)[i] = byte(i / size)
	}
	w, err := r.Writer()
	report(result{Ready: true})
	newest := r.counter(counterHead).Load() - 1
	for i := 0; err == nil; i++ { // it copies nearly all of the time
		_, err = w.TryChange([]RowChange{{Sequence: newest, Row: i % p.Batch, Columns: []int{0}}}, b)
	}
	return result{}, err
}

// TestLargeRowsAreNotReadHalfway reads a row while the process that changes it is stopped, most
// often halfway.
func TestLargeRowsAreNotReadHalfway(t *testing.T) {
	const size, halfway = 4 << 20, 5
	r := newRing(t, Layout{Capacity: 2, Columns: []Column{{Name: "x", DType: Uint8, Shape: []uint64{size}}}})
	write(t, r, 2)
	changer := start(t, r, task{Name: "change a large row", Batch: 16})
	require.True(t, changer.next().Ready)
	h, err := r.Reader()
	require.NoError(t, err)
	into, err := NewBatch(r.Layout(), 0)
	require.NoError(t, err)
	for began, stopped := time.Now(), 0; stopped < halfway; {
		require.Less(t, time.Since(began), time.Minute, "the row was being changed in %d of all stops", stopped)
		require.NoError(t, changer.cmd.Process.Signal(syscall.SIGSTOP))
		lost, err := h.At(t.Context(), []uint64{1}, into)
		require.NoError(t, err)
		require.NoError(t, changer.cmd.Process.Signal(syscall.SIGCONT))
		if len(lost) > 0 {
			stopped++
			continue
		}
		x := into.Bytes(0)
		for i := 0; i < size; i += 4096 {
			require.Equal(t, x[0], x[i], "the row is torn at byte %d", i)
		}
		require.Equal(t, x[0], x[size-1])
	}
	changer.kill()
}

// changeSome changes a few random rows.
func changeSome(r *Ring, seed uint64) error {
	w, err := r.Writer()
	if err != nil {
		return err
	}
	b, err := NewBatch(r.Layout(), 4)
	if err != nil {
		return err
	}
	rng := rand.New(rand.NewPCG(seed, 0))
	testRows(b, rng)
	changes := changesOf(0, 0, 0, 0)
	for i := range changes {
		changes[i].Sequence = r.counter(counterHead).Load() - 1 - rng.Uint64N(r.Layout().Capacity)
	}
	if _, err := w.TryChange(changes, b); !errors.Is(err, ErrHeld) && !errors.Is(err, ErrChanged) {
		return err
	}
	return nil
}

// TestRowOfKilledChangerIsLost kills a changer in the middle of a row.
func TestRowOfKilledChangerIsLost(t *testing.T) {
	r := newRing(t, testLayout(4))
	write(t, r, 4)
	w, err := r.Writer()
	require.NoError(t, err)
	h, err := r.Reader()
	require.NoError(t, err)
	into, err := NewBatch(r.Layout(), 0)
	require.NoError(t, err)
	from := newRows(t, r, 2)

	p := start(t, r, task{Name: "stop mid-change"})
	require.True(t, p.next().Ready)
	_, err = w.TryChange(changesOf(2, 3), from)
	var blocked *HeldError
	require.ErrorAs(t, err, &blocked)
	require.Equal(t, []int{p.cmd.Process.Pid}, blocked.Writers)
	require.Equal(t, 1, blocked.Done)
	area, err := h.Hold(t.Context(), 4)
	require.NoError(t, err)
	require.Equal(t, 3, area.Rows(), "without the row that is being changed")
	require.NoError(t, area.Release())

	p.kill()
	lost, err := h.At(t.Context(), []uint64{0, 1, 2, 3}, into)
	require.NoError(t, err)
	require.Equal(t, []int{3}, lost)
	lost, err = w.TryChange(changesOf(2, 3), from)
	require.NoError(t, err)
	require.Equal(t, []int{1}, lost)
	write(t, r, 4)
	lost, err = h.At(t.Context(), []uint64{4, 5, 6, 7}, into)
	require.NoError(t, err)
	require.Empty(t, lost)
	require.Zero(t, torn(into))
	s, err := r.Stats()
	require.NoError(t, err)
	require.Equal(t, uint64(1), s.TakenOver)
	require.Equal(t, uint64(4), s.Readable)
}

// TestReaderWaitsForARowThatIsBeingChanged has a changer that finishes while the reader waits.
// watched calls a function when its channel is asked for: when something begins to wait.
type watched struct {
	context.Context //nolint:containedctx // it is one

	waits func()
}

func (w watched) Done() <-chan struct{} {
	w.waits()
	return w.Context.Done()
}

func TestReaderWaitsForARowThatIsBeingChanged(t *testing.T) {
	r := newRing(t, testLayout(4))
	write(t, r, 4)
	_, err := r.Writer()
	require.NoError(t, err)
	h, err := r.Reader()
	require.NoError(t, err)
	into, err := NewBatch(r.Layout(), 0)
	require.NoError(t, err)
	at := r.wordAt(r.rows, 2)
	old := word(at.Load())
	at.Store(uint64(writingWord(2, r.self)))
	// The change ends once the reader waits for it.
	ctx := watched{t.Context(), func() { at.Store(uint64(old.changed())) }}
	lost, err := h.At(ctx, []uint64{1, 2, 3}, into)
	require.NoError(t, err)
	require.Empty(t, lost)
	require.Zero(t, torn(into))
}

func TestRingIsWholeAfterChangersWereKilled(t *testing.T) {
	r := newRing(t, testLayout(32))
	write(t, r, 32)
	for i := range uint64(5) {
		p := start(t, r, task{Name: "change", Rows: 1 << 40, Batch: 8, Seed: i})
		require.True(t, p.next().Ready)
		write(t, r, 100)
		p.kill()
		write(t, r, 64)
		require.Equal(t, uint64(32), readable(t, r))
		h, err := r.Reader()
		require.NoError(t, err)
		into, err := NewBatch(r.Layout(), 0)
		require.NoError(t, err)
		require.NoError(t, h.Newest(t.Context(), 32, into))
		require.Zero(t, torn(into))
	}
}
