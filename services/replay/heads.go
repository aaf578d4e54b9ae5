package replay

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"

	replayv1 "github.com/raylink/raylink/gen/raylink/replay/v1"
	"github.com/raylink/raylink/services/replay/ring"
)

// maxPiece is how many bytes of rows travel at once. Longer batches are sent and asked for in pieces.
const maxPiece = 8 << 20

// pieceOf is how many rows travel at once.
func pieceOf(layout ring.Layout) int {
	return int(max(1, maxPiece/rowSize(layout))) //nolint:gosec // at most maxPiece
}

// WriteHead writes to a replay. It is used by one goroutine at a time.
type WriteHead struct {
	client *Client
	// head writes to ring; both are nil before the first write, and where the replay is elsewhere.
	ring *ring.Ring
	head *ring.WriteHead
}

// Writer makes a write head.
func (c *Client) Writer() *WriteHead { return &WriteHead{client: c} }

// Append writes a batch's rows, and says how many were written: all, if there is no error. It is refused with
// [ring.ErrNoRoom] where areas or other writers leave no place for them, and does not wait until they do.
func (w *WriteHead) Append(ctx context.Context, batch *Batch) (int, error) {
	var written int
	err := w.client.with(ctx, func(r *ring.Ring) error {
		if err := w.turnTo(r); err != nil {
			return err
		}
		var err error
		written, err = w.head.Append(batch)
		return err
	}, func() error {
		var err error
		written, err = w.send(ctx, batch)
		return err
	})
	return written, err
}

func (w *WriteHead) turnTo(r *ring.Ring) error {
	if w.ring == r {
		return nil
	}
	head, err := r.Writer()
	if err != nil {
		return err
	}
	w.ring, w.head = r, head
	return nil
}

// send writes through the node.
func (w *WriteHead) send(ctx context.Context, batch *Batch) (int, error) {
	layout := w.client.layout
	if !layout.SameRows(batch.Layout()) {
		return 0, fmt.Errorf("%w: its columns are %v, the replay's %v", ring.ErrBatch, batch.Layout().Columns, layout.Columns)
	}
	piece := pieceOf(layout)
	sequences := make([]uint64, 0, batch.Rows())
	for from := 0; from < batch.Rows(); from += piece {
		part, err := batch.Slice(from, min(from+piece, batch.Rows()))
		if err != nil {
			return from, err
		}
		res, err := w.client.handle.Write(ctx, &replayv1.WriteRequest{Batch: messageOf(part.Clone())}) // the caller's batch stays his
		if err != nil {
			var room *ring.NoRoomError
			if err = restored(err); errors.As(err, &room) {
				from += room.Written
			}
			return from, err
		}
		sequences = append(sequences, res.GetSequence()...)
	}
	batch.SetSequences(sequences)
	return batch.Rows(), nil
}

// ReadHead reads a replay. It is used by one goroutine at a time.
type ReadHead struct {
	client *Client
	rng    *rand.Rand
	ring   *ring.Ring
	head   *ring.ReadHead
}

// Reader makes a read head. What it draws is decided by rng; nil stands for chance.
func (c *Client) Reader(rng *rand.Rand) *ReadHead {
	if rng == nil {
		rng = rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64())) //nolint:gosec // for chance, not for secrecy
	}
	return &ReadHead{client: c, rng: rng}
}

// Sample fills a batch with n rows, each drawn from all with the same probability. [ring.ErrEmpty] says that there are none.
func (h *ReadHead) Sample(ctx context.Context, n int, into *Batch) error {
	return h.client.with(ctx, func(r *ring.Ring) error {
		if err := h.turnTo(r); err != nil {
			return err
		}
		return h.head.Sample(h.rng, n, into)
	}, func() error { return h.fetchSample(ctx, n, into) })
}

// Newest fills a batch with the newest n rows, oldest of them first: fewer where there are fewer. [ring.ErrEmpty] says that
// there are none.
func (h *ReadHead) Newest(ctx context.Context, n int, into *Batch) error {
	return h.client.with(ctx, func(r *ring.Ring) error {
		if err := h.turnTo(r); err != nil {
			return err
		}
		return h.head.Newest(n, into)
	}, func() error { return h.fetchNewest(ctx, n, into) })
}

func (h *ReadHead) turnTo(r *ring.Ring) error {
	if h.ring == r {
		return nil
	}
	head, err := r.Reader()
	if err != nil {
		return err
	}
	h.ring, h.head = r, head
	return nil
}

// fetchSample asks the node. As each row is drawn for itself, many can be drawn in pieces.
func (h *ReadHead) fetchSample(ctx context.Context, n int, into *Batch) error {
	if err := h.prepare(n, into); err != nil {
		return err
	}
	piece := pieceOf(h.client.layout)
	for left := n; left > 0; left -= min(left, piece) {
		seed := h.rng.Uint64() | 1
		res, err := h.client.handle.Sample(ctx, &replayv1.SampleRequest{Rows: uint32(min(left, piece)), Seed: seed}) //nolint:gosec // at most maxPiece
		if err != nil {
			return err
		}
		if err := h.take(res.GetBatch(), into); err != nil {
			return err
		}
	}
	return nil
}

func (h *ReadHead) fetchNewest(ctx context.Context, n int, into *Batch) error {
	if err := h.prepare(n, into); err != nil {
		return err
	}
	n = int(min(uint64(n), h.client.layout.Capacity)) //nolint:gosec // not negative
	res, err := h.client.handle.Newest(ctx, &replayv1.NewestRequest{Rows: uint32(min(n, 1<<32-1))})
	if err != nil {
		return err
	}
	return h.take(res.GetBatch(), into)
}

// prepare empties a batch for n rows that are to come.
func (h *ReadHead) prepare(n int, into *Batch) error {
	if !h.client.layout.SameRows(into.Layout()) {
		return fmt.Errorf("%w: its columns are %v, the replay's %v", ring.ErrBatch, into.Layout().Columns, h.client.layout.Columns)
	}
	if n <= 0 {
		return fmt.Errorf("%w: a batch of %d rows", ring.ErrBatch, n)
	}
	return into.Resize(0)
}

// take adds rows that came to a batch.
func (h *ReadHead) take(message *replayv1.Batch, into *Batch) error {
	rows, err := batchOf(h.client.layout, message)
	if err != nil {
		return fmt.Errorf("the replay's answer: %w", err)
	}
	if rows.Rows() == 0 {
		return ring.ErrEmpty
	}
	return into.AppendRows(rows)
}
