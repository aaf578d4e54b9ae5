package ring

import (
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// seated returns how many of the seats are taken.
func seated(r *Ring) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := 0
	for i := range r.seats {
		if r.seats[i].taken {
			n++
		}
	}
	return n
}

func TestRowsOfManyHeadsAreCounted(t *testing.T) {
	r := newRing(t, oneColumn(1000))
	var number uint64
	func() {
		heads := make([]*InPlace, seats+3)
		for i := range heads {
			heads[i] = inPlaceHead(t, r)
		}
		for range 500 {
			for _, p := range heads {
				require.NoError(t, p.TryAppend(1, writeNumber(&number)))
			}
		}
		if hasSeats() {
			require.Equal(t, seats, seated(r))
		}
	}()
	s, err := r.Stats()
	require.NoError(t, err)
	require.Equal(t, number, s.Written)
	require.Equal(t, uint64(500*(seats+3)), number)
	require.Zero(t, r.held.Load())

	require.Eventually(t, func() bool {
		runtime.GC()
		return seated(r) == 0
	}, 10*time.Second, time.Millisecond, "heads that are not used any more give up their seats")
	p := inPlaceHead(t, r)
	for range 2 {
		require.NoError(t, p.TryAppend(1, writeNumber(&number)))
	}
	require.Equal(t, hasSeats(), p.seat != nil)
	s, err = r.Stats()
	require.NoError(t, err)
	require.Equal(t, number, s.Written)
}

// TestRowsOfALaterRoundAreNotOverwritten has a writer find a row of a later round at a position
// that it has reserved.
func TestRowsOfALaterRoundAreNotOverwritten(t *testing.T) {
	eachWay(t, func(t *testing.T, write appendRow) {
		const capacity = 1000
		r := newRing(t, oneColumn(capacity))
		p := inPlaceHead(t, r)
		var number uint64
		for range capacity + 100 {
			require.NoError(t, write(p, writeNumber(&number)))
		}
		next := p.Sequences()[0] + 1
		later := writingWord(next+capacity, 7).published()
		at := r.wordAt(r.rows, next%capacity)
		before := at.Swap(uint64(later))
		require.NoError(t, write(p, writeNumber(&number)))
		require.Equal(t, next+1, p.Sequences()[0])
		require.Equal(t, uint64(later), at.Swap(before))
	})
}

// TestAreaOfRowsReservedAhead holds rows at positions that a writer has reserved for later writes.
func TestAreaOfRowsReservedAhead(t *testing.T) {
	eachWay(t, func(t *testing.T, write appendRow) {
		const capacity = 1000
		r := newRing(t, oneColumn(capacity))
		p := inPlaceHead(t, r)
		var number uint64
		for p.ahead.from == p.ahead.to || number < 2*capacity {
			require.NoError(t, write(p, writeNumber(&number)))
		}
		h, err := r.Reader()
		require.NoError(t, err)
		area, err := h.Hold(t.Context(), capacity)
		require.NoError(t, err)
		require.Equal(t, capacity, area.Rows())
		written := number
		require.ErrorIs(t, write(p, writeNumber(&number)), ErrNoRoom)
		require.Equal(t, written, number, "the function is not called")
		require.Equal(t, uint64(capacity), readable(t, r))
		require.NoError(t, area.Release())
		require.NoError(t, write(p, writeNumber(&number)))
	})
}
