package ring

import (
	"context"
	"errors"
	"testing"

	"github.com/stretchr/testify/require"
)

// overtaking is a context that lets a writer overwrite the whole ring each time it is asked for its
// error, as often as given: readers ask between loading the newest position and looking for rows.
type overtaking struct {
	context.Context //nolint:containedctx // it is a context

	left  *int
	write func()
}

func (c overtaking) Err() error {
	if *c.left > 0 {
		*c.left--
		c.write()
	}
	return nil
}

// TestReadersOvertakenByWritersAreNotEmpty has writers that overwrite all rows whenever a reader is
// about to look for them. A full ring is never empty.
func TestReadersOvertakenByWritersAreNotEmpty(t *testing.T) {
	const capacity = 8
	for name, read := range map[string]func(ctx context.Context, h *ReadHead) (rows int, err error){
		"newest": func(ctx context.Context, h *ReadHead) (int, error) {
			into, err := NewBatch(h.ring.Layout(), 0)
			require.NoError(t, err)
			err = h.Newest(ctx, 3, into)
			return into.Rows(), err
		},
		"hold": func(ctx context.Context, h *ReadHead) (int, error) {
			area, err := h.Hold(ctx, 3)
			if err != nil {
				return 0, err
			}
			defer func() { require.NoError(t, area.Release()) }()
			return area.Rows(), nil
		},
		"sample": func(ctx context.Context, h *ReadHead) (int, error) {
			into, err := NewBatch(h.ring.Layout(), 0)
			require.NoError(t, err)
			err = h.Sample(ctx, seeded(), 3, into)
			return into.Rows(), err
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRing(t, oneColumn(capacity))
			other, err := Open(r.Path(), r.ID())
			require.NoError(t, err)
			defer func() { require.NoError(t, other.Close()) }()
			w, b := writerOf(t, other, capacity)
			overwrite := func() {
				_, err := w.TryAppend(b)
				require.NoError(t, err)
			}
			overwrite()
			h, err := r.Reader()
			require.NoError(t, err)
			for _, times := range []int{0, 1, 2, 5, 12} {
				left := times
				rows, err := read(overtaking{t.Context(), &left, overwrite}, h)
				require.NoError(t, err, "after %d rounds", times)
				require.Equal(t, 3, rows)
			}
		})
	}
}

// TestNewestRowsAreInOrderThoughWritersOvertake has a writer that overwrites rows while they are
// copied. A row of a later round must not take the place of an older one.
func TestNewestRowsAreInOrderThoughWritersOvertake(t *testing.T) {
	const capacity = 3
	r := newRing(t, oneColumn(capacity))
	other, err := Open(r.Path(), r.ID())
	require.NoError(t, err)
	defer func() { require.NoError(t, other.Close()) }()
	w, b := writerOf(t, other, capacity)
	stop, done := make(chan struct{}), make(chan error, 1)
	go func() {
		for {
			select {
			case <-stop:
				done <- nil
				return
			default:
			}
			if _, err := w.TryAppend(b); err != nil {
				done <- err
				return
			}
		}
	}()
	h, err := r.Reader()
	require.NoError(t, err)
	into, err := NewBatch(r.Layout(), 0)
	require.NoError(t, err)
	for range 100_000 {
		if err := h.Newest(t.Context(), capacity, into); !errors.Is(err, ErrEmpty) {
			require.NoError(t, err)
		}
		for i, s := range into.Sequences() {
			require.True(t, i == 0 || s > into.Sequences()[i-1], "%d", into.Sequences())
		}
	}
	close(stop)
	require.NoError(t, <-done)
}
