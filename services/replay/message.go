package replay

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connectproto"
	"google.golang.org/protobuf/proto"

	replayv1 "github.com/raylink/raylink/gen/raylink/replay/v1"
	tensorv1 "github.com/raylink/raylink/gen/raylink/tensor/v1"
	"github.com/raylink/raylink/services/replay/ring"
)

// layoutOf converts columns to a ring's layout. An unknown element type becomes an invalid one,
// which the ring rejects.
func layoutOf(columns []*tensorv1.Column, capacity uint64) ring.Layout {
	layout := ring.Layout{Capacity: capacity}
	for _, c := range columns {
		dtype := ring.DType(0)
		if c.GetDtype() > 0 && c.GetDtype() <= tensorv1.DataType(ring.BFloat16) {
			dtype = ring.DType(c.GetDtype()) //nolint:gosec // a small number
		}
		layout.Columns = append(layout.Columns, ring.Column{Name: c.GetName(), DType: dtype, Shape: slices.Clone(c.GetShape())})
	}
	return layout
}

// cloneColumns returns deep copies.
func cloneColumns(columns []*tensorv1.Column) []*tensorv1.Column {
	clones := make([]*tensorv1.Column, len(columns))
	for i, c := range columns {
		clones[i] = proto.CloneOf(c)
	}
	return clones
}

// messageOf converts a batch to a message that shares its memory.
func messageOf(batch *ring.Batch) *replayv1.Batch {
	layout := batch.Layout()
	message := &replayv1.Batch{Rows: uint64(batch.Rows()), Sequence: batch.Sequences()} //nolint:gosec // not negative
	for i, c := range layout.Columns {
		message.Columns = append(message.Columns, &tensorv1.Tensor{
			Dtype: tensorv1.DataType(c.DType),
			Shape: append([]uint64{uint64(batch.Rows())}, c.Shape...), //nolint:gosec // not negative
			Data:  batch.Bytes(i),
		})
	}
	return message
}

// batchOf converts an untrusted message to a batch. The batch shares the message's memory if it is
// valid.
func batchOf(layout ring.Layout, message *replayv1.Batch) (*ring.Batch, error) {
	if len(message.GetColumns()) != len(layout.Columns) {
		return nil, fmt.Errorf("%w: it has %d columns instead of %d", ring.ErrBatch, len(message.GetColumns()), len(layout.Columns))
	}
	columns := make([][]byte, len(layout.Columns))
	for i, tensor := range message.GetColumns() {
		c, shape := layout.Columns[i], tensor.GetShape()
		fits := tensor.GetDtype() == tensorv1.DataType(c.DType) &&
			len(shape) == 1+len(c.Shape) && shape[0] == message.GetRows() && slices.Equal(shape[1:], c.Shape)
		if !fits {
			return nil, fmt.Errorf("%w: column %q has type %v and shape %v instead of type %v and %d rows of shape %v",
				ring.ErrBatch, c.Name, ring.DType(tensor.GetDtype()), shape, c.DType, message.GetRows(), c.Shape) //nolint:gosec // for an error message
		}
		columns[i] = tensor.GetData()
	}
	return ring.BatchOf(layout, message.GetRows(), columns, message.GetSequence())
}

func holderMessage(h ring.Holder) *replayv1.Holder {
	return &replayv1.Holder{Pid: int64(h.PID), Rows: h.Rows, AgeNs: uint64(h.Age)} //nolint:gosec // not negative
}

func detailOf(e *ring.NoRoomError) *replayv1.NoRoom {
	detail := &replayv1.NoRoom{Rows: uint64(e.Rows), Written: uint64(e.Written), Capacity: e.Capacity, Held: e.Held} //nolint:gosec // not negative
	for _, h := range e.Holders {
		detail.HeldBy = append(detail.HeldBy, holderMessage(h))
	}
	for _, pid := range e.Writers {
		detail.Writers = append(detail.Writers, int64(pid))
	}
	return detail
}

func holdersOf(messages []*replayv1.Holder) []ring.Holder {
	holders := make([]ring.Holder, 0, len(messages))
	for _, h := range messages {
		holders = append(holders, ring.Holder{PID: int(h.GetPid()), Rows: h.GetRows(), Age: time.Duration(h.GetAgeNs())}) //nolint:gosec // an error text
	}
	return holders
}

// noRoomOf is the inverse of detailOf.
func noRoomOf(detail *replayv1.NoRoom) *ring.NoRoomError {
	e := &ring.NoRoomError{
		Rows: int(detail.GetRows()), Written: int(detail.GetWritten()), Capacity: detail.GetCapacity(), Held: detail.GetHeld(), //nolint:gosec // an error text
	}
	e.Holders = holdersOf(detail.GetHeldBy())
	for _, pid := range detail.GetWriters() {
		e.Writers = append(e.Writers, int(pid))
	}
	return e
}

// ringError converts an error from the node to the one that a ring on this machine would return.
func ringError(err error) error {
	if unconfirmed, ok := errors.AsType[*UnconfirmedError](err); ok && unconfirmed != nil {
		return err // of a stream, which has converted its error
	}
	remote, ok := errors.AsType[*connect.Error](err)
	if !ok {
		return err
	}
	for _, detail := range remote.Details() {
		message, unmarshalErr := connectproto.UnmarshalErrorDetail(detail)
		if unmarshalErr != nil {
			continue
		}
		switch m := message.(type) {
		case *replayv1.NoRoom:
			return fmt.Errorf("%w (%w)", noRoomOf(m), remote)
		case *replayv1.Failure:
			if reason := reasonError(m.GetReason()); reason != nil {
				return fmt.Errorf("%w (%w)", reason, remote)
			}
		}
	}
	return err
}

// reasonError returns the ring's error for a reason, or nil if the reason is unknown.
func reasonError(reason replayv1.Reason) error {
	switch reason {
	case replayv1.Reason_REASON_BATCH:
		return ring.ErrBatch
	case replayv1.Reason_REASON_LAYOUT:
		return ring.ErrLayout
	case replayv1.Reason_REASON_ENDED:
		return ring.ErrEnded
	case replayv1.Reason_REASON_CLOSED:
		return ring.ErrClosed
	case replayv1.Reason_REASON_TABLE:
		return ErrTable
	case replayv1.Reason_REASON_LIMITER:
		return ErrLimiter
	case replayv1.Reason_REASON_ITEM:
		return ErrItem
	case replayv1.Reason_REASON_PRIORITY:
		return ErrPriority
	case replayv1.Reason_REASON_ARGUMENT:
		return ErrArgument
	case replayv1.Reason_REASON_CHECKPOINT:
		return ErrCheckpoint
	case replayv1.Reason_REASON_NOT_EMPTY:
		return ErrNotEmpty
	case replayv1.Reason_REASON_DIRECTORY:
		return ErrDirectory
	case replayv1.Reason_REASON_SPACE:
		return ErrNoSpace
	case replayv1.Reason_REASON_CHANGED:
		return ring.ErrChanged
	case replayv1.Reason_REASON_KEY:
		return ErrKey
	case replayv1.Reason_REASON_UNSPECIFIED:
	}
	return nil
}
