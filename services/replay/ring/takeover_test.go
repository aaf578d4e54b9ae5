package ring

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/raylink/raylink/services/internal/mapfile"
)

func accept(*Ring) error { return nil }

// reopen maps a ring once more, as another process would.
func reopen(t *testing.T, r *Ring) *Ring {
	t.Helper()
	other, err := Open(r.Path(), r.ID())
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, other.Close()) })
	return other
}

// TestTakeOverGivesUpWhatTheCreatorHad kills a creator that holds an area and is writing a row.
func TestTakeOverGivesUpWhatTheCreatorHad(t *testing.T) {
	r := newRing(t, testLayout(4))
	other := reopen(t, r)
	w, err := r.Writer()
	require.NoError(t, err)
	write(t, r, 4)
	h, err := r.Reader()
	require.NoError(t, err)
	_, err = h.Hold(t.Context(), 2)
	require.NoError(t, err)
	_, ok := w.lock(4)
	require.True(t, ok)
	held, err := other.Reader()
	require.NoError(t, err)
	area, err := held.Hold(t.Context(), 1)
	require.NoError(t, err)

	_, err = TakeOver(r.Path(), accept)
	var inUse *InUseError
	require.ErrorAs(t, err, &inUse)
	require.Equal(t, os.Getpid(), inUse.PID)
	require.ErrorIs(t, err, ErrInUse)

	require.NoError(t, r.RaiseMark(7))
	require.NoError(t, r.RaiseMark(6))
	require.NoError(t, mapfile.Unlock(r.file, r.participantOffset(ownerIndex))) // as if killed
	served, err := other.Served()
	require.NoError(t, err)
	require.False(t, served)
	refused := errors.New("no")
	_, err = TakeOver(r.Path(), func(*Ring) error { return refused })
	require.ErrorIs(t, err, refused)
	require.Zero(t, other.Takeovers())

	again, err := TakeOver(r.Path(), func(next *Ring) error {
		require.Equal(t, r.ID(), next.ID())
		mark, err := next.Mark()
		require.NoError(t, err)
		require.EqualValues(t, 7, mark)
		_, err = TakeOver(r.Path(), accept)
		require.ErrorIs(t, err, ErrInUse, "while another process takes it over")
		return nil
	})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, again.Close()) })
	served, err = other.Served()
	require.NoError(t, err)
	require.True(t, served)
	require.EqualValues(t, 1, other.Takeovers())
	stats, err := again.Stats()
	require.NoError(t, err)
	require.Equal(t, 1, stats.Areas, "that of the other process stays")
	require.EqualValues(t, 4, stats.Written)
	require.EqualValues(t, 3, stats.Readable)
	require.NoError(t, area.Release())
	write(t, other, 4) // also in place of the row that was being written
}

func TestTakeOverOfAnEndedRing(t *testing.T) {
	r := newRing(t, testLayout(4))
	other := reopen(t, r)
	write(t, other, 3)
	require.NoError(t, r.End())
	served, err := other.Served()
	require.NoError(t, err)
	require.False(t, served)
	require.NoError(t, r.Close())
	again, err := TakeOver(r.Path(), accept)
	require.NoError(t, err)
	write(t, other, 1)
	stats, err := again.Stats()
	require.NoError(t, err)
	require.EqualValues(t, 4, stats.Written)
	require.NoError(t, again.Close())
	_, err = again.Mark()
	require.ErrorIs(t, err, ErrClosed)
	require.ErrorIs(t, again.RaiseMark(1), ErrClosed)
	_, err = again.Served()
	require.ErrorIs(t, err, ErrClosed)
	_, err = TakeOver(filepath.Join(t.TempDir(), "none"), accept)
	require.ErrorIs(t, err, os.ErrNotExist)
}
