package replay

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"connectrpc.com/connect/v2"

	replayv1 "github.com/raylink/raylink/gen/raylink/replay/v1"
	"github.com/raylink/raylink/services/replay/ring"
)

// maxChunk is the maximum size in bytes of the rows in one message. Larger batches are split.
const maxChunk = 8 << 20

// numberBytes is about the maximum size of a row's sequence number in a message, or of the run of a
// row that lies apart.
const numberBytes = 16

// rowsPerChunk returns the number of rows that fit into one message with their sequence numbers, at
// least one.
func rowsPerChunk(layout ring.Layout) int {
	return int(max(1, maxChunk/(layout.RowBytes()+numberBytes))) //nolint:gosec // at most maxChunk
}

// WriteHead writes to a replay. It is not safe for concurrent use.
type WriteHead struct {
	client *Client
	// head writes to ring; both are nil before the first write, and if the replay is on another
	// machine.
	ring *ring.Ring
	head *ring.WriteHead
	// id is that of ring; wrote is that of the ring that got the last rows.
	id, wrote string
}

// Writer returns a write head.
func (c *Client) Writer() *WriteHead { return &WriteHead{client: c} }

// Append writes a batch's rows, and returns how many were written: all of them if the error is nil.
// [Batch.Sequences] then has their sequence numbers; after an error it has those of the rows that
// were written, which are the first ones.
//
// Where areas or other writers leave no room, Append waits until they do, or until the context
// ends. The error then is a [ring.NoRoomError], which names the processes in the way and how long
// they have been, and which matches the context's error. If the replay's node dies meanwhile,
// Append returns an error within a second.
//
// The node's death is checked at most once in recheckInterval: rows whose write begins less than a
// millisecond after the node died are still reported as written, though they are lost.
func (w *WriteHead) Append(ctx context.Context, batch *Batch) (int, error) {
	return w.write(ctx, batch, true)
}

// TryAppend is Append, except that it does not wait: it returns a [ring.NoRoomError] if there is no
// room for the batch now.
func (w *WriteHead) TryAppend(ctx context.Context, batch *Batch) (int, error) {
	return w.write(ctx, batch, false)
}

func (w *WriteHead) write(ctx context.Context, batch *Batch, wait bool) (int, error) {
	batch.SetSequences(nil)
	err := w.client.with(ctx, func(r *ring.Ring) error {
		if err := w.bind(r); err != nil {
			return err
		}
		w.wrote = w.id
		var err error
		if wait {
			_, err = w.head.Append(ctx, batch)
		} else {
			_, err = w.head.TryAppend(batch)
		}
		return err
	}, func() error { return w.send(ctx, batch, wait, false) })
	return len(batch.Sequences()), err
}

func (w *WriteHead) bind(r *ring.Ring) error {
	if w.ring == r {
		return nil
	}
	head, err := r.Writer()
	if err != nil {
		return err
	}
	w.ring, w.head, w.id = r, head, r.ID().String()
	return nil
}

// waitAtNode is how long the node waits for room in one call.
const waitAtNode = 500 * time.Millisecond

// send writes through the node. It sets the batch's sequence numbers, also if it fails. Rows to be
// written together fit into one message.
func (w *WriteHead) send(ctx context.Context, batch *Batch, wait, together bool) error {
	layout := w.client.layout
	if !layout.SameRows(batch.Layout()) {
		return fmt.Errorf("%w: its columns are %v, those of the replay %v", ring.ErrBatch, batch.Layout().Columns, layout.Columns)
	}
	if uint64(batch.Rows()) > layout.Capacity { //nolint:gosec // not negative
		return fmt.Errorf("%w: it has %d rows, and the ring %d", ring.ErrBatch, batch.Rows(), layout.Capacity)
	}
	chunk, begin := rowsPerChunk(layout), time.Now()
	sequences := make([]uint64, 0, batch.Rows())
	defer func() { batch.SetSequences(sequences) }()
	// room is set once the node has refused rows. It then waits until there is room.
	var room *ring.NoRoomError
	for len(sequences) < batch.Rows() {
		// Clone: the caller may modify the batch after Append.
		part, err := batch.Slice(len(sequences), min(len(sequences)+chunk, batch.Rows()))
		if err != nil {
			return err
		}
		req := &replayv1.WriteRequest{Batch: messageOf(part.Clone()), Together: together}
		if room != nil {
			req.WaitMs = waitOf(ctx)
		}
		res, err := w.client.Handle().Write(ctx, req)
		if id := res.GetRingId(); id != "" {
			w.wrote = id
		}
		sequences = append(sequences, res.GetSequence()...)
		refused := noRoomIn(res, err)
		switch {
		case refused != nil:
			room = refused
		case err != nil && room != nil && endedBy(ctx, err) != nil: // while it waited
		case err != nil:
			return err
		default:
			continue
		}
		room.Rows, room.Written, room.Waited, room.Cause = batch.Rows(), len(sequences), time.Since(begin), endedBy(ctx, err)
		if !wait || room.Cause != nil {
			return fmt.Errorf("append to ring: %w", room)
		}
	}
	return nil
}

// endedBy returns the context's error if the context has ended, or if a call failed because its
// deadline passed at the node, which may be earlier.
func endedBy(ctx context.Context, err error) error {
	if ctx.Err() == nil && err != nil && connect.CodeOf(err) == connect.CodeDeadlineExceeded {
		return context.DeadlineExceeded
	}
	return ctx.Err() //nolint:wrapcheck // the caller adds the operation
}

// waitOf returns how long the node is to wait, in milliseconds: shorter than the context lasts, so
// that the response arrives before it ends.
func waitOf(ctx context.Context) uint32 {
	wait := waitAtNode
	if deadline, ok := ctx.Deadline(); ok {
		wait = min(wait, time.Until(deadline)/2)
	}
	return uint32(max(1, wait.Milliseconds())) //nolint:gosec // at most waitAtNode
}

// noRoomIn returns why the node did not write all rows, or nil if that was not for lack of room.
func noRoomIn(res *replayv1.WriteResponse, err error) *ring.NoRoomError {
	if err == nil {
		if res.GetNoRoom() == nil {
			return nil
		}
		return noRoomOf(res.GetNoRoom())
	}
	room, _ := errors.AsType[*ring.NoRoomError](ringError(err))
	return room
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
		return h.head.Sample(ctx, h.rng, n, into)
	}, func() error { return h.fetchSample(ctx, n, into) })
}

// Newest fills a batch with the newest n rows, oldest first, or with fewer if fewer are readable.
// It returns [ring.ErrEmpty] if there are none.
func (h *ReadHead) Newest(ctx context.Context, n int, into *Batch) error {
	return h.client.with(ctx, func(r *ring.Ring) error {
		if err := h.bind(r); err != nil {
			return err
		}
		return h.head.Newest(ctx, n, into)
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
		res, err := h.client.Handle().Sample(ctx, &replayv1.SampleRequest{Rows: uint32(min(left, chunk)), Seed: seed}) //nolint:gosec // at most maxChunk
		if err != nil {
			return err
		}
		if err := h.add(res.GetBatch(), into); err != nil {
			return err
		}
	}
	return nil
}

// fetchNewest reads the newest rows through the node, in several calls if they are many: the newest
// ones first.
func (h *ReadHead) fetchNewest(ctx context.Context, n int, into *Batch) error {
	if err := h.prepare(n, into); err != nil || n == 0 {
		return err
	}
	n = int(min(uint64(n), h.client.layout.Capacity)) //nolint:gosec // not negative
	chunk := rowsPerChunk(h.client.layout)
	var parts []*Batch
	var before uint64
	for left := n; left > 0; {
		wanted := min(left, chunk)
		res, err := h.client.Handle().Newest(ctx, &replayv1.NewestRequest{Rows: uint32(wanted), Before: before}) //nolint:gosec // at most maxChunk
		if err != nil {
			return err
		}
		part, err := batchOf(h.client.layout, res.GetBatch())
		if err != nil {
			return fmt.Errorf("invalid response from the replay: %w", err)
		}
		if part.Rows() > 0 {
			if len(part.Sequences()) != part.Rows() || part.Rows() > wanted {
				return fmt.Errorf("invalid response from the replay: %w: %d rows and %d sequence numbers instead of %d",
					ring.ErrBatch, part.Rows(), len(part.Sequences()), wanted)
			}
			parts = append(parts, part)
			before = part.Sequences()[0]
			left -= part.Rows()
		}
		if part.Rows() < wanted || before == 0 {
			break
		}
	}
	if len(parts) == 0 {
		return ring.ErrEmpty
	}
	for _, part := range slices.Backward(parts) {
		if err := into.AppendRows(part); err != nil {
			return err
		}
	}
	return nil
}

// prepare checks a batch that is to receive n rows, and empties it.
func (h *ReadHead) prepare(n int, into *Batch) error {
	if !h.client.layout.SameRows(into.Layout()) {
		return fmt.Errorf("%w: its columns are %v, those of the replay %v", ring.ErrBatch, into.Layout().Columns, h.client.layout.Columns)
	}
	if n < 0 {
		return fmt.Errorf("%w: a batch of %d rows", ring.ErrBatch, n)
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
