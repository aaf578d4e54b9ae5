package replay

import (
	"errors"
	"fmt"
	"slices"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connectproto"

	replayv1 "github.com/raylink/raylink/gen/raylink/replay/v1"
	tensorv1 "github.com/raylink/raylink/gen/raylink/tensor/v1"
	"github.com/raylink/raylink/services/replay/ring"
)

// layoutOf is the ring's view of columns. An element type that the ring does not know becomes one that it refuses.
func layoutOf(columns []*replayv1.Column, capacity uint64) ring.Layout {
	layout := ring.Layout{Capacity: capacity}
	for _, c := range columns {
		dtype := ring.DType(0)
		if c.GetDtype() > 0 && c.GetDtype() <= tensorv1.DataType(ring.Float64) {
			dtype = ring.DType(c.GetDtype()) //nolint:gosec // a small number
		}
		layout.Columns = append(layout.Columns, ring.Column{Name: c.GetName(), DType: dtype, Shape: slices.Clone(c.GetShape())})
	}
	return layout
}

func columnsOf(layout ring.Layout) []*replayv1.Column {
	columns := make([]*replayv1.Column, len(layout.Columns))
	for i, c := range layout.Columns {
		columns[i] = &replayv1.Column{Name: c.Name, Dtype: tensorv1.DataType(c.DType), Shape: slices.Clone(c.Shape)}
	}
	return columns
}

// rowSize is the size of a valid layout's row, in bytes.
func rowSize(layout ring.Layout) uint64 {
	var row uint64
	for _, c := range layout.Columns {
		size := uint64(c.DType.Size()) //nolint:gosec // positive
		for _, n := range c.Shape {
			size *= n
		}
		row += size
	}
	return row
}

// messageOf is a batch as it travels. It shares the batch's memory.
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

// batchOf is a batch that came. Nothing of it is trusted; where it is right, its memory is shared.
func batchOf(layout ring.Layout, message *replayv1.Batch) (*ring.Batch, error) {
	if len(message.GetColumns()) != len(layout.Columns) {
		return nil, fmt.Errorf("%w: it has %d columns, and should have %d", ring.ErrBatch, len(message.GetColumns()), len(layout.Columns))
	}
	columns := make([][]byte, len(layout.Columns))
	for i, tensor := range message.GetColumns() {
		c, shape := layout.Columns[i], tensor.GetShape()
		fits := tensor.GetDtype() == tensorv1.DataType(c.DType) &&
			len(shape) == 1+len(c.Shape) && shape[0] == message.GetRows() && slices.Equal(shape[1:], c.Shape)
		if !fits {
			return nil, fmt.Errorf("%w: column %q is %v of the shape %v, and should be %v of %d times %v",
				ring.ErrBatch, c.Name, ring.DType(tensor.GetDtype()), shape, c.DType, message.GetRows(), c.Shape) //nolint:gosec // for a text
		}
		columns[i] = tensor.GetData()
	}
	return ring.BatchOf(layout, message.GetRows(), columns, message.GetSequence())
}

func detailOf(e *ring.NoRoomError) *replayv1.NoRoom {
	detail := &replayv1.NoRoom{Rows: uint64(e.Rows), Written: uint64(e.Written), Capacity: e.Capacity, Held: e.Held} //nolint:gosec // not negative
	for _, pid := range e.Holders {
		detail.Holders = append(detail.Holders, int64(pid))
	}
	return detail
}

// restored gives an error of the node the type that it has on the node's own machine.
func restored(err error) error {
	var authored *connect.Error
	if !errors.As(err, &authored) {
		return err
	}
	for _, detail := range authored.Details() {
		message, err := connectproto.UnmarshalErrorDetail(detail)
		room, ok := message.(*replayv1.NoRoom)
		if err != nil || !ok {
			continue
		}
		restored := &ring.NoRoomError{
			Rows: int(room.GetRows()), Written: int(room.GetWritten()), Capacity: room.GetCapacity(), Held: room.GetHeld(), //nolint:gosec // for a text
		}
		for _, pid := range room.GetHolders() {
			restored.Holders = append(restored.Holders, int(pid))
		}
		return fmt.Errorf("%w (%w)", restored, authored)
	}
	return err
}
