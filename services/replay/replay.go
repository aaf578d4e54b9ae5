// Package replay is the buffer between those who act and those who learn: rows of named columns, written and sampled by many
// processes at once.
//
// The node owns a memory-mapped ring (package ring, which has the promises). [Open] makes a client for a handle of it, with one
// API for both ways: on the node's machine its heads write and read the mapping itself, without a call; from elsewhere they go
// through the node. Which way it is, is proven by finding the ring's id in the file that the node names, and nothing else.
//
// A replay is created with a configuration of columns:
//
//	config := &replayv1.ReplayConfig{Capacity: 50_000, Columns: []*replayv1.Column{
//		replay.Column[float32]("observation", 4),
//		replay.Column[int32]("action"),
//	}}
//	handle, err := replayv1raylink.CreateReplay(ctx, rt, config)
//	buffer, err := replay.Open(ctx, handle)
//	batch, err := buffer.NewBatch(1)
//	observation, err := replay.Values[float32](batch, "observation") // copy an observation into it
//	_, err = buffer.Writer().Append(ctx, batch)
package replay

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/proto"

	replayv1 "github.com/raylink/raylink/gen/raylink/replay/v1"
	"github.com/raylink/raylink/gen/raylink/replay/v1/replayv1raylink"
	tensorv1 "github.com/raylink/raylink/gen/raylink/tensor/v1"
	"github.com/raylink/raylink/runtime"
	"github.com/raylink/raylink/services/replay/ring"
)

// Type is the node type `replay`.
func Type() runtime.NodeType {
	return replayv1raylink.ReplayType(
		func(_ context.Context, self *runtime.Node, config *replayv1.ReplayConfig) (replayv1raylink.ReplayNode, error) {
			directory := config.GetDirectory()
			if directory == "" {
				directory = self.RunDirectory().Mapped()
			}
			if !filepath.IsAbs(directory) {
				// By a process that knows the handle alone, and not this type.
				return nil, connect.Errorf(connect.CodeInvalidArgument, "the replay's directory %q is relative: give an absolute one", directory)
			}
			n, err := newNode(directory, self.NID(), config)
			if err != nil {
				return nil, err
			}
			self.OnStop(func(context.Context) error { return n.close() })
			return n, nil
		}).Preparing(makeAbsolute)
}

// makeAbsolute makes the directory absolute in the process that creates the replay: the replay's own process, and those that read
// and write it, have working directories of their own.
func makeAbsolute(config proto.Message) error {
	c, ok := config.(*replayv1.ReplayConfig)
	if !ok || c.GetDirectory() == "" {
		return nil
	}
	directory, err := filepath.Abs(c.GetDirectory())
	if err != nil {
		return fmt.Errorf("the replay's directory: %w", err)
	}
	c.Directory = directory
	return nil
}

// Batch is rows outside the replay, column by column.
type Batch = ring.Batch

// Rows is what has typed columns: a [Batch], or a [Span] of an area.
type Rows = ring.Rows

// Values is the column with a name as a slice of its elements, row after row, without a copy.
func Values[T ring.Element](rows Rows, name string) ([]T, error) { return ring.Values[T](rows, name) }

// Column describes a column of a configuration. Without a shape it is a scalar in each row.
func Column[T ring.Element](name string, shape ...uint64) *replayv1.Column {
	var zero T
	var dtype tensorv1.DataType
	switch any(zero).(type) {
	case uint8:
		dtype = tensorv1.DataType_DATA_TYPE_UINT8
	case int8:
		dtype = tensorv1.DataType_DATA_TYPE_INT8
	case int16:
		dtype = tensorv1.DataType_DATA_TYPE_INT16
	case int32:
		dtype = tensorv1.DataType_DATA_TYPE_INT32
	case int64:
		dtype = tensorv1.DataType_DATA_TYPE_INT64
	case float32:
		dtype = tensorv1.DataType_DATA_TYPE_FLOAT32
	case float64:
		dtype = tensorv1.DataType_DATA_TYPE_FLOAT64
	}
	return &replayv1.Column{Name: name, Dtype: dtype, Shape: shape}
}

// newNode makes a node and its ring. The file's name has the node's id, so that its next life finds what the last one left.
func newNode(directory, nid string, config *replayv1.ReplayConfig) (*node, error) {
	layout := layoutOf(config.GetColumns(), config.GetCapacity())
	if err := layout.Validate(); err != nil {
		return nil, connect.Errorf(connect.CodeInvalidArgument, "configuring a replay: %v", err)
	}
	if err := removeLeft(directory, nid); err != nil {
		return nil, err
	}
	r, err := ring.Create(filepath.Join(directory, fileName(nid, rand.Text())), layout)
	if err != nil {
		return nil, err
	}
	w, err := r.Writer()
	if err != nil {
		return nil, errors.Join(err, r.Remove(), r.Close())
	}
	return &node{ring: r, writer: w, rowSize: rowSize(layout)}, nil
}

func fileName(nid, life string) string { return "replay-" + nid + "-" + life + ".ring" }

// removeLeft removes the rings of the node's earlier lives.
func removeLeft(directory, nid string) error {
	left, err := filepath.Glob(filepath.Join(escaped(directory), fileName(nid, "*")))
	if err != nil {
		return fmt.Errorf("look for rings of an earlier life: %w", err)
	}
	for _, path := range left {
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("remove the ring of an earlier life: %w", err)
		}
	}
	return nil
}

// escaped is a path that matches itself only.
func escaped(path string) string {
	var b []byte
	for i := range len(path) {
		switch path[i] {
		case '*', '?', '[', '\\':
			b = append(b, '\\')
		}
		b = append(b, path[i])
	}
	return string(b)
}
