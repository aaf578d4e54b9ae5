package replay

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"os"
	"sync/atomic"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connectproto"
	"google.golang.org/protobuf/proto"

	replayv1 "github.com/raylink/raylink/gen/raylink/replay/v1"
	"github.com/raylink/raylink/gen/raylink/replay/v1/replayv1raylink"
	tensorv1 "github.com/raylink/raylink/gen/raylink/tensor/v1"
	"github.com/raylink/raylink/runtime/rundir"
	"github.com/raylink/raylink/services/replay/ring"
)

// maxResponse is the maximum size of the rows in one response, in bytes.
const maxResponse = 32 << 20

// maxRowBytes is the maximum size of a row in bytes: a message of a tunnel has at most 64 MiB.
const maxRowBytes = 63 << 20

// node is a replay node. All of its methods are concurrent, because the ring needs no lock.
type node struct {
	replayv1raylink.UnimplementedReplayNode

	ring    *ring.Ring
	writer  *ring.WriteHead
	rowSize uint64
	// columns are as they were configured, with their initial values.
	columns []*tensorv1.Column
	tables  *tables
	feeds   feeds
	draws   draws
	// file is nil if the ring's file is removed with the node.
	file *openFile

	log *slog.Logger
	// restored is what the node got from a checkpoint, or nil.
	restored atomic.Pointer[replayv1.Restored]
}

// close ends the tables, and the ring for heads in all processes. It removes the ring's file,
// unless the user named it.
func (n *node) close() error {
	n.tables.close(ring.ErrEnded)
	n.feeds.close(ring.ErrEnded)
	n.draws.close(ring.ErrEnded)
	if n.file != nil {
		return errors.Join(n.file.close(), n.ring.End(), n.ring.Close(), n.file.own.close())
	}
	return errors.Join(n.ring.End(), n.ring.Remove(), n.ring.Close())
}

// discard closes a node that was not served. If it has created a file, nothing of that is left.
func (n *node) discard() error {
	if n.file == nil || !n.file.created {
		return n.close()
	}
	// As long as the node has the lock, no other one opens them.
	return errors.Join(n.ring.Remove(), os.Remove(n.file.path), os.Remove(n.file.own.file.Name()), n.close())
}

// Describe returns the columns of a row and the place of the ring.
func (n *node) Describe(context.Context, *replayv1.DescribeRequest) (*replayv1.DescribeResponse, error) {
	stats, err := n.ring.Stats()
	if err != nil {
		return nil, connectError(err)
	}
	machine, err := rundir.Machine()
	if err != nil {
		return nil, err
	}
	return &replayv1.DescribeResponse{
		Columns: cloneColumns(n.columns), Capacity: stats.Capacity, File: n.ring.Path(), RingId: n.ring.ID().String(),
		Written: stats.Written, Rows: stats.Readable, Tables: n.tables.configs,
		Restored: n.restored.Load(), Machine: machine,
	}, nil
}

// maxWait is the maximum time that a write waits at the node. A client that has to wait longer
// calls again, and in between it gets to know which processes are in its way.
const maxWait = time.Second

// Write appends rows.
func (n *node) Write(ctx context.Context, req *replayv1.WriteRequest) (*replayv1.WriteResponse, error) {
	batch, err := batchOf(n.ring.Layout(), req.GetBatch())
	if err != nil {
		return nil, connectError(err)
	}
	wait := time.Duration(req.GetWaitMs()) * time.Millisecond
	if wait > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, min(wait, maxWait))
		defer cancel()
	}
	switch {
	case req.GetTogether():
		err = n.writeTogether(ctx, batch, wait > 0)
	case wait > 0:
		_, err = n.writer.Append(ctx, batch)
	default:
		_, err = n.writer.TryAppend(batch)
	}
	res := &replayv1.WriteResponse{Sequence: batch.Sequences(), RingId: n.ring.ID().String()}
	if room, ok := errors.AsType[*ring.NoRoomError](err); ok && room.Written > 0 {
		res.NoRoom = detailOf(room)
		return res, nil
	}
	if err != nil {
		return nil, connectError(err)
	}
	return res, nil
}

// writeTogether appends all rows or none.
func (n *node) writeTogether(ctx context.Context, batch *ring.Batch, wait bool) error {
	w := n.writer.InPlace()
	fill := func(columns [][]byte) {
		for i, column := range columns {
			copy(column, batch.Bytes(i))
		}
	}
	var err error
	if wait {
		err = w.Append(ctx, batch.Rows(), fill)
	} else {
		err = w.TryAppend(batch.Rows(), fill)
	}
	batch.SetSequences(w.Sequences())
	return err
}

// Sample draws random rows.
func (n *node) Sample(ctx context.Context, req *replayv1.SampleRequest) (*replayv1.SampleResponse, error) {
	seed, stream := req.GetSeed(), uint64(0)
	if seed == 0 {
		seed, stream = rand.Uint64(), rand.Uint64() //nolint:gosec // sampling needs no cryptographic randomness
	}
	rng := rand.New(rand.NewPCG(seed, stream)) //nolint:gosec // as above
	batch, err := n.read(req.GetRows(), func(h *ring.ReadHead, into *ring.Batch) error {
		return h.Sample(ctx, rng, int(req.GetRows()), into)
	})
	return &replayv1.SampleResponse{Batch: batch}, err
}

// Newest reads the newest rows.
func (n *node) Newest(ctx context.Context, req *replayv1.NewestRequest) (*replayv1.NewestResponse, error) {
	rows := uint32(min(uint64(req.GetRows()), n.ring.Layout().Capacity)) //nolint:gosec // not more than a uint32
	batch, err := n.read(rows, func(h *ring.ReadHead, into *ring.Batch) error {
		if req.GetBefore() == 0 {
			return h.Newest(ctx, int(rows), into)
		}
		return h.NewestBefore(ctx, req.GetBefore(), int(rows), into)
	})
	return &replayv1.NewestResponse{Batch: batch}, err
}

// Read reads rows by their sequence numbers.
func (n *node) Read(ctx context.Context, req *replayv1.ReadRequest) (*replayv1.ReadResponse, error) {
	if !n.isRing(req.GetRingId()) {
		return &replayv1.ReadResponse{Batch: &replayv1.Batch{}}, nil
	}
	rows := uint64(rowsIn(req.GetRuns())) //nolint:gosec // not negative
	if most := max(1, maxResponse/n.rowSize); rows > most {
		return nil, connect.Errorf(connect.CodeResourceExhausted,
			"read %d rows of %d bytes by their numbers: at most %d fit into one response", rows, n.rowSize, most)
	}
	sequences := appendRuns(make([]uint64, 0, rows), req.GetRuns())
	batch, err := n.read(1, func(h *ring.ReadHead, into *ring.Batch) error {
		_, err := h.At(ctx, sequences, into)
		return err
	})
	return &replayv1.ReadResponse{Batch: batch}, err
}

// read reads up to the given number of rows into a message.
func (n *node) read(rows uint32, read func(*ring.ReadHead, *ring.Batch) error) (*replayv1.Batch, error) {
	if rows > 1 && uint64(rows)*n.rowSize > maxResponse {
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
	if file, ok := errors.AsType[*FileError](err); ok {
		return withDetail(connect.CodeFailedPrecondition, err, file.detail())
	}
	var room *ring.NoRoomError
	switch reason := tableReason(err); reason {
	case replayv1.Reason_REASON_UNSPECIFIED:
	case replayv1.Reason_REASON_KEY:
		return withDetail(connect.CodeNotFound, err, &replayv1.Failure{Reason: reason})
	default:
		return withDetail(connect.CodeInvalidArgument, err, &replayv1.Failure{Reason: reason})
	}
	if reason := checkpointReason(err); reason != replayv1.Reason_REASON_UNSPECIFIED {
		return withDetail(connect.CodeFailedPrecondition, err, &replayv1.Failure{Reason: reason})
	}
	switch {
	case errors.As(err, &room):
		return withDetail(connect.CodeResourceExhausted, err, detailOf(room))
	case errors.Is(err, ring.ErrBatch):
		return withDetail(connect.CodeInvalidArgument, err, &replayv1.Failure{Reason: replayv1.Reason_REASON_BATCH})
	case errors.Is(err, ring.ErrChanged):
		return withDetail(connect.CodeFailedPrecondition, err, &replayv1.Failure{Reason: replayv1.Reason_REASON_CHANGED})
	case errors.Is(err, ring.ErrLayout):
		return withDetail(connect.CodeInvalidArgument, err, &replayv1.Failure{Reason: replayv1.Reason_REASON_LAYOUT})
	case errors.Is(err, ring.ErrEnded), errors.Is(err, ring.ErrClosed):
		// Closed is the node's mapping, after it ended the ring, and not the caller's.
		return withDetail(connect.CodeUnavailable, err, &replayv1.Failure{Reason: replayv1.Reason_REASON_ENDED})
	default:
		return err
	}
}

// withDetail returns a connect error from which ringError restores the ring's.
func withDetail(code connect.Code, err error, message proto.Message) error {
	connectErr := connect.NewError(code, err.Error()).WithCause(err)
	detail, detailErr := connectproto.NewErrorDetail(message)
	if detailErr != nil {
		return connectErr
	}
	return connectErr.WithDetail(detail)
}
