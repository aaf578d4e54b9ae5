package ring

import (
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func seeded() *rand.Rand { return rand.New(rand.NewPCG(1, 2)) }

// write appends n checksummed rows from this process.
func write(t *testing.T, r *Ring, n int) {
	t.Helper()
	o, err := writeRows(r, task{Rows: n, Batch: 1})
	require.NoError(t, err)
	require.Equal(t, n, o.Rows)
}

func readable(t *testing.T, r *Ring) uint64 {
	t.Helper()
	require.NoError(t, r.pin())
	defer r.unpin()
	return uint64(len(r.readableSlots()))
}

func TestConcurrentProcessesReadNoTornRow(t *testing.T) {
	r := newRing(t, testLayout(50))
	write(t, r, 50)
	for _, o := range stress(t, r, 4000) {
		require.Zero(t, o.Torn, "torn rows")
	}
	s, err := r.Stats()
	require.NoError(t, err)
	require.Equal(t, uint64(50+2*4000), s.Written)
	require.Equal(t, uint64(50), s.Readable)
	require.Zero(t, s.Held)
	require.Zero(t, s.Refused)
}

func TestReaderSurvivesWriterKilledMidRow(t *testing.T) {
	r := newRing(t, testLayout(10))
	write(t, r, 15)
	writer := start(t, r, task{Name: "stop mid-row", Seed: 7})
	require.True(t, writer.next().Ready)
	writer.kill()

	require.Equal(t, uint64(9), readable(t, r), "the unfinished row is unreadable")
	h, err := r.Reader()
	require.NoError(t, err)
	b, err := NewBatch(r.Layout(), 0)
	require.NoError(t, err)
	require.NoError(t, h.Sample(t.Context(), seeded(), 500, b))
	require.Zero(t, torn(b))
	require.NoError(t, h.Newest(t.Context(), 10, b))
	require.Zero(t, torn(b))
	require.Equal(t, []uint64{6, 7, 8, 9, 10, 11, 12, 13, 14}, b.Sequences())

	write(t, r, 10)
	require.Equal(t, uint64(10), readable(t, r), "the next writer that reached the row took it over")
	s, err := r.Stats()
	require.NoError(t, err)
	require.Equal(t, uint64(1), s.TakenOver)
	require.NoError(t, h.Newest(t.Context(), 10, b))
	require.Equal(t, []uint64{16, 17, 18, 19, 20, 21, 22, 23, 24, 25}, b.Sequences())
	require.Zero(t, torn(b))
}

func TestReusedIndexDoesNotOwnRowsOfDeadWriter(t *testing.T) {
	r := newRing(t, testLayout(10))
	for range 3 {
		writer := start(t, r, task{Name: "stop mid-row"})
		require.True(t, writer.next().Ready)
		writer.kill()
	}
	// The next participant gets the index of the first one, but must not own the row it left.
	other, err := Open(r.Path(), r.ID())
	require.NoError(t, err)
	require.NoError(t, other.claimIndex(ownerIndex+1))
	write(t, other, 17)
	require.Equal(t, uint64(10), readable(t, r))
	require.NoError(t, other.Close())
}

func TestWritersSkipWriterStoppedMidRow(t *testing.T) {
	r := newRing(t, testLayout(10))
	writer := start(t, r, task{Name: "stop mid-row"})
	require.True(t, writer.next().Ready)
	require.NoError(t, writer.cmd.Process.Signal(unix.SIGSTOP))

	write(t, r, 45)
	require.Equal(t, uint64(9), readable(t, r), "the row of a stopped writer is not taken over")

	require.NoError(t, writer.cmd.Process.Signal(unix.SIGCONT))
	_, err := writer.in.Write([]byte("\n"))
	require.NoError(t, err)
	require.Equal(t, 1, writer.end().Rows)
	require.Equal(t, uint64(10), readable(t, r))
	h, err := r.Reader()
	require.NoError(t, err)
	b, err := NewBatch(r.Layout(), 0)
	require.NoError(t, err)
	require.NoError(t, h.Sample(t.Context(), seeded(), 200, b))
	require.Zero(t, torn(b))
	require.Contains(t, b.Sequences(), uint64(0), "its row is complete, if old")
	require.NoError(t, h.Newest(t.Context(), 9, b))
	require.NotContains(t, b.Sequences(), uint64(0), "an old row is not among the newest")
}

func TestAreaOfKilledReaderIsReclaimed(t *testing.T) {
	r := newRing(t, testLayout(10))
	write(t, r, 10)
	reader := start(t, r, task{Name: "stop with areas", Rows: 3, Batch: 10})
	require.True(t, reader.next().Ready)

	w, err := r.Writer()
	require.NoError(t, err)
	b, err := NewBatch(r.Layout(), 1)
	require.NoError(t, err)
	_, err = w.TryAppend(b)
	var refused *NoRoomError
	require.ErrorAs(t, err, &refused)
	require.ErrorIs(t, err, ErrNoRoom)
	require.Equal(t, uint64(10), refused.Held)
	require.Len(t, refused.Holders, 1)
	require.Equal(t, reader.cmd.Process.Pid, refused.Holders[0].PID)
	require.Equal(t, uint64(10), refused.Holders[0].Rows)
	require.Positive(t, refused.Holders[0].Age)

	reader.kill()
	write(t, r, 10)
	s, err := r.Stats()
	require.NoError(t, err)
	require.Zero(t, s.Areas)
	require.Equal(t, uint64(1), s.Refused)
}

func TestEntriesOfKilledReaderAreReused(t *testing.T) {
	r := newRing(t, testLayout(10))
	write(t, r, 10)
	reader := start(t, r, task{Name: "stop with areas", Rows: maxAreas, Batch: 1})
	require.True(t, reader.next().Ready)
	h, err := r.Reader()
	require.NoError(t, err)
	_, err = h.Hold(t.Context(), 1)
	require.ErrorIs(t, err, ErrTooManyAreas)
	reader.kill()
	area, err := h.Hold(t.Context(), 1)
	require.NoError(t, err)
	require.NoError(t, area.Release())
}

func TestFailedWriteLeavesNothingLocked(t *testing.T) {
	r := newRing(t, testLayout(10))
	write(t, r, 10)
	h, err := r.Reader()
	require.NoError(t, err)
	area, err := h.Hold(t.Context(), 10)
	require.NoError(t, err)
	w, err := r.Writer()
	require.NoError(t, err)
	b, err := NewBatch(r.Layout(), 1)
	require.NoError(t, err)
	for range 3 {
		n, err := w.TryAppend(b)
		require.ErrorIs(t, err, ErrNoRoom)
		require.Zero(t, n)
	}
	require.Equal(t, uint64(10), readable(t, r))
	require.NoError(t, area.Release())
	require.NoError(t, area.Release(), "a second release does nothing")
	write(t, r, 3)
	require.Equal(t, uint64(10), readable(t, r))
}

func TestWriterWithEarlierPositionBacksOutOfArea(t *testing.T) {
	r := newRing(t, testLayout(10))
	write(t, r, 10)
	w, err := r.Writer()
	require.NoError(t, err)
	positions := w.allocate(1)
	require.True(t, positions.reserve(1))
	before := r.wordAt(r.all, 0).Load()

	h, err := r.Reader()
	require.NoError(t, err)
	area, err := h.Hold(t.Context(), 10)
	require.NoError(t, err)
	require.False(t, w.claim(positions.from, positions.epoch), "the area was held after the position was allocated")
	require.Equal(t, before, r.wordAt(r.all, 0).Load(), "the row is unchanged")
	require.Equal(t, 10, area.Rows())
	require.NoError(t, area.Release())
	require.True(t, w.claim(positions.from, positions.epoch))
}

func TestRingIsOrphanedWhenCreatorCloses(t *testing.T) {
	r := newRing(t, testLayout(10))
	other, err := Open(r.Path(), r.ID())
	require.NoError(t, err)
	orphaned, err := other.Orphaned()
	require.NoError(t, err)
	require.False(t, orphaned)
	write(t, other, 1)
	require.NoError(t, r.Close())
	orphaned, err = other.Orphaned()
	require.NoError(t, err)
	require.True(t, orphaned)
	write(t, other, 1)
	require.NoError(t, other.Close())
}
