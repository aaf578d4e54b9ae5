package replay

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"

	replayv1 "github.com/raylink/raylink/gen/raylink/replay/v1"
	"github.com/raylink/raylink/services/replay/ring"
)

// maxChunk is the maximum size in bytes of the rows in one message. Larger batches are split.
const maxChunk = 8 << 20

// rowsPerChunk returns the number of rows that fit into one message, at least one.
func rowsPerChunk(layout ring.Layout) int {
	return int(max(1, maxChunk/rowSize(layout))) //nolint:gosec // at most maxChunk
}

// WriteHead writes to a replay. It is not safe for concurrent use.
type WriteHead struct {
	client *Client
	// head writes to ring; both are nil before the first write, and if the replay is on another
	// machine.
	ring *ring.Ring
	head *ring.WriteHead
}

// Writer returns a write head.
func (c *Client) Writer() *WriteHead { return &WriteHead{client: c} }

// Append writes a batch's rows, and returns how many were written: all of them if the error is nil.
// It never waits for room: it returns [ring.ErrNoRoom] if areas or other writers leave none.
func (w *WriteHead) Append(ctx context.Context, batch *Batch) (int, error) {
	var written int
	err := w.client.with(ctx, func(r *ring.Ring) error {
		if err := w.bind(r); err != nil {
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

func (w *WriteHead) bind(r *ring.Ring) error {
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
		return 0, fmt.Errorf("%w: its columns are %v, those of the replay %v", ring.ErrBatch, batch.Layout().Columns, layout.Columns)
	}
	chunk := rowsPerChunk(layout)
	sequences := make([]uint64, 0, batch.Rows())
	for from := 0; from < batch.Rows(); from += chunk {
		part, err := batch.Slice(from, min(from+chunk, batch.Rows()))
		if err != nil {
			return from, err
		}
		// Clone: the caller may modify the batch after Append.
		res, err := w.client.handle.Write(ctx, &replayv1.WriteRequest{Batch: messageOf(part.Clone())})
		if err != nil {
			var room *ring.NoRoomError
			if err = ringError(err); errors.As(err, &room) {
				from += room.Written
			}
			return from, err
		}
		sequences = append(sequences, res.GetSequence()...)
	}
	batch.SetSequences(sequences)
	return batch.Rows(), nil
}

// ReadHead reads a replay. It is not safe for concurrent use.
type ReadHead struct {
	client *Client
	rng    *rand.Rand
	ring   *ring.Ring
	head   *ring.ReadHead
}

// Reader returns a read head. It draws samples with rng, or with a randomly seeded generator if rng
// is nil.
func (c *Client) Reader(rng *rand.Rand) *ReadHead {
	if rng == nil {
		rng = rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64())) //nolint:gosec // sampling needs no cryptographic randomness
	}
	return &ReadHead{client: c, rng: rng}
}

// Sample fills a batch with n rows, each drawn independently and uniformly from all readable rows.
// It returns [ring.ErrEmpty] if there are none.
func (h *ReadHead) Sample(ctx context.Context, n int, into *Batch) error {
	return h.client.with(ctx, func(r *ring.Ring) error {
		if err := h.bind(r); err != nil {
			return err
		}
		return h.head.Sample(h.rng, n, into)
	}, func() error { return h.fetchSample(ctx, n, into) })
}

// Newest fills a batch with the newest n rows, oldest first, or with fewer if fewer are readable.
// It returns [ring.ErrEmpty] if there are none.
func (h *ReadHead) Newest(ctx context.Context, n int, into *Batch) error {
	return h.client.with(ctx, func(r *ring.Ring) error {
		if err := h.bind(r); err != nil {
			return err
		}
		return h.head.Newest(n, into)
	}, func() error { return h.fetchNewest(ctx, n, into) })
}

func (h *ReadHead) bind(r *ring.Ring) error {
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

// fetchSample samples through the node. Rows are drawn independently, so a large sample can be
// drawn in several calls.
func (h *ReadHead) fetchSample(ctx context.Context, n int, into *Batch) error {
	if err := h.prepare(n, into); err != nil {
		return err
	}
	chunk := rowsPerChunk(h.client.layout)
	for left := n; left > 0; left -= min(left, chunk) {
		seed := h.rng.Uint64() | 1
		res, err := h.client.handle.Sample(ctx, &replayv1.SampleRequest{Rows: uint32(min(left, chunk)), Seed: seed}) //nolint:gosec // at most maxChunk
		if err != nil {
			return err
		}
		if err := h.add(res.GetBatch(), into); err != nil {
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
	return h.add(res.GetBatch(), into)
}

// prepare checks a batch that is to receive n rows, and empties it.
func (h *ReadHead) prepare(n int, into *Batch) error {
	if !h.client.layout.SameRows(into.Layout()) {
		return fmt.Errorf("%w: its columns are %v, those of the replay %v", ring.ErrBatch, into.Layout().Columns, h.client.layout.Columns)
	}
	if n <= 0 {
		return fmt.Errorf("%w: batch of %d rows", ring.ErrBatch, n)
	}
	return into.Resize(0)
}

// add appends received rows to a batch.
func (h *ReadHead) add(message *replayv1.Batch, into *Batch) error {
	rows, err := batchOf(h.client.layout, message)
	if err != nil {
		return fmt.Errorf("invalid response from the replay: %w", err)
	}
	if rows.Rows() == 0 {
		return ring.ErrEmpty
	}
	return into.AppendRows(rows)
}
