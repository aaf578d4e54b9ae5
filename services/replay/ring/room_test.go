package ring

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// oneColumn is the layout of rows of one number.
func oneColumn(capacity uint64) Layout {
	return Layout{Capacity: capacity, Columns: []Column{{Name: "x", DType: Int64}}}
}

func writerOf(t *testing.T, r *Ring, rows int) (*WriteHead, *Batch) {
	t.Helper()
	w, err := r.Writer()
	require.NoError(t, err)
	b, err := NewBatch(r.Layout(), rows)
	require.NoError(t, err)
	return w, b
}

func hold(t *testing.T, r *Ring, n int) *Area {
	t.Helper()
	h, err := r.Reader()
	require.NoError(t, err)
	area, err := h.Hold(t.Context(), n)
	require.NoError(t, err)
	return area
}

// appended runs Append in a goroutine.
func appended(ctx context.Context, w *WriteHead, b *Batch) <-chan error {
	done := make(chan error, 1)
	go func() {
		_, err := w.Append(ctx, b)
		done <- err
	}()
	return done
}

// waitFor waits for Append to return.
func waitFor(t *testing.T, done <-chan error) error {
	t.Helper()
	select {
	case err := <-done:
		return err
	case <-time.After(20 * time.Second):
		require.Fail(t, "Append still waits")
		return nil
	}
}

func TestHeldAreasCauseNoLivenessChecks(t *testing.T) {
	r := newRing(t, testLayout(200))
	write(t, r, 200)
	holder := start(t, r, task{Name: "stop with areas", Rows: 16, Batch: 1, Every: 5})
	require.True(t, holder.next().Ready)
	defer holder.kill()
	before := r.checks.Load()
	write(t, r, 2000)
	// A sweep a second is allowed; without it, each row would need 32.
	require.Less(t, r.checks.Load()-before, uint64(200), "liveness checks of 2000 rows")
}

// TestHoldersAreThoseThatLive asks the ring's creator and a process that only reads, before and
// after the death of a holder. It checks no more than one lock for each holder.
func TestHoldersAreThoseThatLive(t *testing.T) {
	r := newRing(t, testLayout(100))
	write(t, r, 100)
	reader, err := Open(r.Path(), r.ID())
	require.NoError(t, err)
	defer func() { require.NoError(t, reader.Close()) }()
	holder := start(t, r, task{Name: "stop with areas", Rows: 3, Batch: 5})
	require.True(t, holder.next().Ready)
	for _, asks := range []*Ring{reader, r} {
		before := asks.checks.Load()
		holders, err := asks.Holders()
		require.NoError(t, err)
		require.Len(t, holders, 1)
		require.Equal(t, holder.cmd.Process.Pid, holders[0].PID)
		require.Equal(t, uint64(5), holders[0].Rows)
		require.Positive(t, holders[0].Age)
		require.Equal(t, before+1, asks.checks.Load())
	}
	holder.kill()
	for _, asks := range []*Ring{reader, r} {
		holders, err := asks.Holders()
		require.NoError(t, err)
		require.Empty(t, holders)
	}
	closed, err := Open(r.Path(), r.ID())
	require.NoError(t, err)
	require.NoError(t, closed.Close())
	_, err = closed.Holders()
	require.ErrorIs(t, err, ErrClosed)
}

func TestDeadHoldersAreaIsReclaimedThoughThereIsRoom(t *testing.T) {
	r := newRing(t, testLayout(10))
	write(t, r, 10)
	holder := start(t, r, task{Name: "stop with areas", Rows: 1, Batch: 5})
	require.True(t, holder.next().Ready)
	holder.kill()
	require.Equal(t, uint64(5), r.heldRows())
	r.counter(counterSwept).Store(0) // as if the interval had passed
	r.sweepChecked.Store(0)
	write(t, r, 20)
	require.Zero(t, r.heldRows(), "rows that a dead process holds")
}

func TestHoldDoesNotVisitNumbersBetweenRows(t *testing.T) {
	r := newRing(t, oneColumn(100))
	ageRows(t, r, 1e11) // visiting the numbers between them would take hours
	area := hold(t, r, 100)
	require.GreaterOrEqual(t, area.Rows(), 90)
	require.NoError(t, area.Release())

	// An area of the oldest rows and of the newest does not include all others.
	r = newRing(t, oneColumn(100))
	ageRows(t, r, 1)
	area = hold(t, r, 3)
	require.LessOrEqual(t, r.heldRows(), uint64(20))
	require.NoError(t, area.Release())
}

// TestWritersAreNotRefusedDuringHold has areas come and go during writes. There is always room.
func TestWritersAreNotRefusedDuringHold(t *testing.T) {
	r := newRing(t, oneColumn(1000))
	write(t, r, 1000)
	h, err := r.Reader()
	require.NoError(t, err)
	stop := make(chan struct{})
	var writers sync.WaitGroup
	defer writers.Wait()
	defer close(stop)
	refused := make(chan error, 2)
	for range 2 {
		p := inPlaceHead(t, r)
		writers.Go(func() {
			var number uint64
			for {
				select {
				case <-stop:
					return
				default:
				}
				if err := p.TryAppend(1, writeNumber(&number)); err != nil {
					refused <- err
					return
				}
			}
		})
	}
	for range 300 {
		area, err := h.Hold(t.Context(), 300)
		require.NoError(t, err)
		require.NoError(t, area.Release())
	}
	require.Empty(t, refused)
	s, err := r.Stats()
	require.NoError(t, err)
	require.Zero(t, s.Refused)
}

func TestHoldEndsWithItsContext(t *testing.T) {
	r := newRing(t, oneColumn(100))
	write(t, r, 100)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	h, err := r.Reader()
	require.NoError(t, err)
	_, err = h.Hold(ctx, 10)
	require.ErrorIs(t, err, context.Canceled)
	s, err := r.Stats()
	require.NoError(t, err)
	require.Zero(t, s.Areas)
	for i := range maxAreas {
		require.Zero(t, r.areaOwner(i).Load(), "entry %d is still allocated", i)
	}
}

// endsAfter is a context that ends when it has been asked for its error so many times.
type endsAfter struct {
	context.Context //nolint:containedctx // it is a context

	asked *int
}

func (c endsAfter) Err() error {
	if *c.asked--; *c.asked < 0 {
		return context.Canceled
	}
	return nil
}

func TestReadsEndWithTheirContext(t *testing.T) {
	for name, ring := range map[string]func(r *Ring){
		"full":          func(r *Ring) { write(t, r, 10_000) },
		"few rows left": func(r *Ring) { loseRows(t, r, 10) },
	} {
		t.Run(name, func(t *testing.T) {
			r := newRing(t, oneColumn(10_000))
			ring(r)
			h, err := r.Reader()
			require.NoError(t, err)
			into, err := NewBatch(r.Layout(), 0)
			require.NoError(t, err)
			for asked := range 3 {
				left := asked
				ctx := endsAfter{t.Context(), &left}
				require.ErrorIs(t, h.Sample(ctx, seeded(), 1000, into), context.Canceled)
				require.Less(t, into.Rows(), 100)
				require.Len(t, into.Sequences(), into.Rows())
				left = asked
				require.ErrorIs(t, h.Newest(ctx, 5000, into), context.Canceled)
				require.Less(t, into.Rows(), 100)
				require.Len(t, into.Sequences(), into.Rows())
			}
		})
	}
}

func TestSamplingFewReadableRowsListsNoOthers(t *testing.T) {
	r := newRing(t, oneColumn(2_000_000))
	loseRows(t, r, 10)
	h, err := r.Reader()
	require.NoError(t, err)
	into, err := NewBatch(r.Layout(), 0)
	require.NoError(t, err)
	begin := time.Now()
	for range 100 {
		require.NoError(t, h.Sample(t.Context(), seeded(), 16, into))
		require.Len(t, into.Sequences(), 16)
		s, err := r.Stats()
		require.NoError(t, err)
		require.Equal(t, uint64(10), s.Readable)
	}
	require.Less(t, time.Since(begin), 5*time.Second) // 30 times as long if all rows were listed
}

func TestBatchDoesNotOverwriteItsOwnRows(t *testing.T) {
	r := newRing(t, oneColumn(4))
	other, err := Open(r.Path(), r.ID())
	require.NoError(t, err)
	slow, err := other.Writer()
	require.NoError(t, err)
	positions := slow.allocate(1)
	sequence, ok := positions.next(1) // is being written
	require.True(t, ok)

	w, b := writerOf(t, r, 4)
	n, err := w.TryAppend(b)
	var room *NoRoomError
	require.ErrorAs(t, err, &room)
	require.Equal(t, 3, n)
	require.Equal(t, 3, room.Written)
	require.Equal(t, []int{os.Getpid()}, room.Writers)
	h, err := r.Reader()
	require.NoError(t, err)
	into, err := NewBatch(r.Layout(), 0)
	require.NoError(t, err)
	require.NoError(t, h.Newest(t.Context(), 4, into))
	require.Equal(t, b.Sequences(), into.Sequences(), "rows that were reported as written")

	done := appended(t.Context(), w, b)
	slow.publish(sequence)
	require.NoError(t, waitFor(t, done))
	require.Len(t, b.Sequences(), 4)
	require.NoError(t, h.Newest(t.Context(), 4, into))
	require.Equal(t, b.Sequences(), into.Sequences())
	require.NoError(t, other.Close())
}

func TestWrittenDoesNotCountPositionsOfDeadWriter(t *testing.T) {
	r := newRing(t, testLayout(50))
	write(t, r, 3)
	writer := start(t, r, task{Name: "stop mid-batch", Rows: 4, Batch: 20})
	require.True(t, writer.next().Ready)
	writer.kill()
	write(t, r, 2)
	s, err := r.Stats()
	require.NoError(t, err)
	require.Equal(t, uint64(9), s.Written)
	require.Equal(t, uint64(9), s.Readable)
}

func TestReaderDoesNotCountUnownedAreas(t *testing.T) {
	r := newRing(t, testLayout(10))
	write(t, r, 10)
	// What a process leaves that is killed while it reclaims an area.
	r.areaCount(0).Store(5)
	r.areaOwner(0).Store(uint64(newAreaMark(1, noParticipant)))
	r.activate(entrySet{}.with(0))
	other, err := Open(r.Path(), r.ID())
	require.NoError(t, err)
	for _, ring := range []*Ring{other, r} {
		stats, err := ring.Stats()
		require.NoError(t, err)
		require.Zero(t, stats.Held)
		require.Zero(t, stats.Areas)
	}
	require.NoError(t, other.Close())
}

func TestRoomFor4000Participants(t *testing.T) {
	if testing.Short() {
		t.Skip("maps a file 4,000 times")
	}
	r := newRing(t, oneColumn(10))
	for range 4000 {
		other, err := Open(r.Path(), r.ID())
		require.NoError(t, err)
		defer func() { require.NoError(t, other.Close()) }()
		w, b := writerOf(t, other, 1)
		_, err = w.TryAppend(b)
		require.NoError(t, err)
	}
	s, err := r.Stats()
	require.NoError(t, err)
	require.Equal(t, uint64(4000), s.Written)
}

func TestAppendWaitsUntilAreaIsReleased(t *testing.T) {
	r := newRing(t, testLayout(10))
	write(t, r, 10)
	area := hold(t, r, 10)
	w, b := writerOf(t, r, 7)
	_, err := w.TryAppend(b)
	require.ErrorIs(t, err, ErrNoRoom)
	done := appended(t.Context(), w, b)
	require.Never(t, func() bool { return len(done) > 0 }, 30*time.Millisecond, 5*time.Millisecond)
	require.NoError(t, area.Release())
	require.NoError(t, waitFor(t, done))
	require.Len(t, b.Sequences(), 7)
}

func TestAppendEndsWithItsContextAndNamesHolder(t *testing.T) {
	r := newRing(t, testLayout(10))
	write(t, r, 10)
	holder := start(t, r, task{Name: "stop with areas", Rows: 2, Batch: 10})
	require.True(t, holder.next().Ready)
	require.NoError(t, holder.cmd.Process.Signal(unix.SIGSTOP)) // it is stopped, not dead
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	w, b := writerOf(t, r, 1)
	n, err := w.Append(ctx, b)
	require.Zero(t, n)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.ErrorIs(t, err, ErrNoRoom)
	var room *NoRoomError
	require.ErrorAs(t, err, &room)
	require.Len(t, room.Holders, 1)
	require.Equal(t, holder.cmd.Process.Pid, room.Holders[0].PID)
	require.Equal(t, uint64(10), room.Holders[0].Rows)
	require.GreaterOrEqual(t, room.Holders[0].Age, 50*time.Millisecond)
	require.GreaterOrEqual(t, room.Waited, 40*time.Millisecond, "it began after the context")
	require.ErrorContains(t, err, "has held 10 rows for")

	done := appended(t.Context(), w, b)
	holder.kill()
	require.NoError(t, waitFor(t, done), "the areas of a dead holder are reclaimed")
}

func TestWaitingAppendNoticesDeathOfCreator(t *testing.T) {
	newRing(t, testLayout(1)) // skips the test where rings are unsupported
	path := filepath.Join(t.TempDir(), "ring")
	creator := start(t, nil, task{Name: "create", Path: path})
	id, err := ParseID(creator.next().ID)
	require.NoError(t, err)
	require.True(t, creator.next().Ready)
	r, err := Open(path, id)
	require.NoError(t, err)
	area := hold(t, r, 10)
	w, b := writerOf(t, r, 1)
	done := appended(t.Context(), w, b)
	creator.kill()
	begin := time.Now()
	require.ErrorIs(t, waitFor(t, done), ErrOrphaned)
	require.Less(t, time.Since(begin), time.Second)
	require.NoError(t, area.Release())
	require.NoError(t, r.Close())
}

func TestWaitingAppendNoticesEndAndClose(t *testing.T) {
	for name, end := range map[string]func(*Ring) error{"end": (*Ring).End, "close": (*Ring).Close} {
		t.Run(name, func(t *testing.T) {
			r := newRing(t, testLayout(10))
			write(t, r, 10)
			area := hold(t, r, 10)
			w, b := writerOf(t, r, 1)
			done := appended(t.Context(), w, b)
			runtime.Gosched()
			require.NoError(t, end(r))
			err := waitFor(t, done)
			require.True(t, errors.Is(err, ErrEnded) || errors.Is(err, ErrClosed), "%v", err)
			require.NoError(t, area.Release())
		})
	}
}
