package replay

import (
	"context"
	"errors"
	"math/rand/v2"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connectproto"

	replayv1 "github.com/raylink/raylink/gen/raylink/replay/v1"
	"github.com/raylink/raylink/gen/raylink/replay/v1/replayv1raylink"
	"github.com/raylink/raylink/services/replay/ring"
)

// maxResponse is the maximum size of the rows in one response, in bytes.
const maxResponse = 32 << 20

// node is a replay node. All of its methods are concurrent, because the ring needs no lock.
type node struct {
	replayv1raylink.UnimplementedReplayNode

	ring    *ring.Ring
	writer  *ring.WriteHead
	rowSize uint64
}

// close ends the ring for heads in all processes, and deletes its file.
func (n *node) close() error {
	return errors.Join(n.ring.End(), n.ring.Remove(), n.ring.Close())
}

// Describe returns the columns of a row and the place of the ring.
func (n *node) Describe(context.Context, *replayv1.DescribeRequest) (*replayv1.DescribeResponse, error) {
	stats, err := n.ring.Stats()
	if err != nil {
		return nil, connectError(err)
	}
	return &replayv1.DescribeResponse{
		Columns: columnsOf(n.ring.Layout()), Capacity: stats.Capacity, File: n.ring.Path(), RingId: n.ring.ID().String(),
		Written: stats.Written, Rows: stats.Readable,
	}, nil
}

// Write appends rows.
func (n *node) Write(_ context.Context, req *replayv1.WriteRequest) (*replayv1.WriteResponse, error) {
	batch, err := batchOf(n.ring.Layout(), req.GetBatch())
	if err != nil {
		return nil, connectError(err)
	}
	if _, err := n.writer.Append(batch); err != nil {
		return nil, connectError(err)
	}
	return &replayv1.WriteResponse{Sequence: batch.Sequences()}, nil
}

// Sample draws random rows.
func (n *node) Sample(_ context.Context, req *replayv1.SampleRequest) (*replayv1.SampleResponse, error) {
	seed, stream := req.GetSeed(), uint64(0)
	if seed == 0 {
		seed, stream = rand.Uint64(), rand.Uint64() //nolint:gosec // sampling needs no cryptographic randomness
	}
	rng := rand.New(rand.NewPCG(seed, stream)) //nolint:gosec // as above
	batch, err := n.read(req.GetRows(), func(h *ring.ReadHead, into *ring.Batch) error {
		return h.Sample(rng, int(req.GetRows()), into)
	})
	return &replayv1.SampleResponse{Batch: batch}, err
}

// Newest reads the newest rows.
func (n *node) Newest(_ context.Context, req *replayv1.NewestRequest) (*replayv1.NewestResponse, error) {
	rows := uint32(min(uint64(req.GetRows()), n.ring.Layout().Capacity)) //nolint:gosec // not more than a uint32
	batch, err := n.read(rows, func(h *ring.ReadHead, into *ring.Batch) error { return h.Newest(int(rows), into) })
	return &replayv1.NewestResponse{Batch: batch}, err
}

// read reads up to the given number of rows into a message.
func (n *node) read(rows uint32, read func(*ring.ReadHead, *ring.Batch) error) (*replayv1.Batch, error) {
	if uint64(rows)*n.rowSize > maxResponse {
		return nil, connect.Errorf(connect.CodeResourceExhausted,
			"read %d rows of %d bytes: they exceed the %d bytes that fit into one response", rows, n.rowSize, uint64(maxResponse))
	}
	h, err := n.ring.Reader()
	if err != nil {
		return nil, connectError(err)
	}
	batch, err := ring.NewBatch(n.ring.Layout(), 0)
	if err != nil {
		return nil, connectError(err)
	}
	if err := read(h, batch); err != nil && !errors.Is(err, ring.ErrEmpty) {
		return nil, connectError(err)
	}
	return messageOf(batch), nil
}

// connectError converts an error of the ring to a connect error with a code for the caller.
func connectError(err error) error {
	var room *ring.NoRoomError
	switch {
	case errors.As(err, &room):
		connectErr := connect.NewError(connect.CodeResourceExhausted, err.Error()).WithCause(err)
		detail, detailErr := connectproto.NewErrorDetail(detailOf(room))
		if detailErr != nil {
			return connectErr
		}
		return connectErr.WithDetail(detail)
	case errors.Is(err, ring.ErrBatch), errors.Is(err, ring.ErrLayout):
		return connect.NewError(connect.CodeInvalidArgument, err.Error()).WithCause(err)
	case errors.Is(err, ring.ErrEnded), errors.Is(err, ring.ErrClosed):
		return connect.NewError(connect.CodeUnavailable, err.Error()).WithCause(err)
	default:
		return err
	}
}
