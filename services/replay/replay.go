// Package replay implements the replay buffer between actors and learners: rows of named columns,
// written and sampled by many processes concurrently.
//
// A replay node owns a memory-mapped ring (see package ring for its guarantees). [Open] returns a
// client for a replay's handle. Its heads have one API for local and remote access: on the node's
// machine they read and write the mapping directly, without a call; on other machines they call the
// node. The client uses the mapping if and only if the file that the node names has the ring's id.
//
// A replay is created with a configuration of its columns:
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

// Type returns the node type "replay".
func Type() runtime.NodeType {
	return replayv1raylink.ReplayType(
		func(_ context.Context, self *runtime.Node, config *replayv1.ReplayConfig) (replayv1raylink.ReplayNode, error) {
			directory := config.GetDirectory()
			if directory == "" {
				directory = self.RunDirectory().Mapped()
			}
			if !filepath.IsAbs(directory) {
				// The creator did not link this package, which makes paths absolute.
				return nil, connect.Errorf(connect.CodeInvalidArgument,
					"create replay: directory %q is relative: use an absolute path", directory)
			}
			n, err := newNode(directory, self.NID(), config)
			if err != nil {
				return nil, err
			}
			self.OnStop(func(context.Context) error { return n.close() })
			return n, nil
		}).Preparing(makeAbsolute)
}

// makeAbsolute makes the directory absolute in the process that creates the replay. The replay's
// process and those that use it have other working directories.
func makeAbsolute(config proto.Message) error {
	c, ok := config.(*replayv1.ReplayConfig)
	if !ok || c.GetDirectory() == "" {
		return nil
	}
	directory, err := filepath.Abs(c.GetDirectory())
	if err != nil {
		return fmt.Errorf("make the replay's directory absolute: %w", err)
	}
	c.Directory = directory
	return nil
}

// Batch is a set of rows outside the replay, stored by column.
type Batch = ring.Batch

// Rows has typed columns: a [Batch], or a [Span] of an area.
type Rows = ring.Rows

// Values returns the named column as a slice of its elements, row after row, without a copy.
func Values[T ring.Element](rows Rows, name string) ([]T, error) { return ring.Values[T](rows, name) }

// Column returns the description of a column with elements of type T. Without a shape it has one
// element per row.
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

// newNode creates a node and its ring. The file's name contains the node's id, so that the next
// incarnation finds the file that this one left behind.
func newNode(directory, nid string, config *replayv1.ReplayConfig) (*node, error) {
	layout := layoutOf(config.GetColumns(), config.GetCapacity())
	if err := layout.Validate(); err != nil {
		return nil, connect.Errorf(connect.CodeInvalidArgument, "configure replay: %v", err)
	}
	if err := removeStale(directory, nid); err != nil {
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

func fileName(nid, suffix string) string { return "replay-" + nid + "-" + suffix + ".ring" }

// removeStale removes the rings of earlier incarnations.
func removeStale(directory, nid string) error {
	stale, err := filepath.Glob(filepath.Join(escapeGlob(directory), fileName(nid, "*")))
	if err != nil {
		return fmt.Errorf("find rings of earlier incarnations: %w", err)
	}
	for _, path := range stale {
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("remove ring of an earlier incarnation: %w", err)
		}
	}
	return nil
}

// escapeGlob returns a pattern that matches exactly the given path.
func escapeGlob(path string) string {
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
