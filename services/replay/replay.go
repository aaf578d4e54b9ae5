// Package replay implements the replay buffer between actors and learners: rows of named columns,
// written and sampled by many processes concurrently.
//
// A replay node owns a memory-mapped ring (see package ring for its guarantees). On the node's
// machine its clients read and write the mapping directly, without a call; on other machines they
// call the node. The API is the same. A client uses the mapping if and only if the file that the
// node names has the ring's id.
//
// A message with option (raylink.options.v1.row) describes the rows, and the plugin generates their
// columns (see package runtime/row). [Open] returns a client that has them as Go slices:
//
//	config := &replayv1.ReplayConfig{Columns: demov1raylink.StepRow.Columns(), CapacityBytes: 8 << 30}
//	handle, err := replayv1raylink.CreateReplay(ctx, rt, config)
//	steps, err := replay.Open(ctx, handle, demov1raylink.StepRow)
//	w, err := steps.Writer()
//	err = w.Append(ctx, 1, func(rows *demov1raylink.StepColumns) { rows.Action[0] = action })
//	area, err := steps.Newest(ctx, 4096) // read in place
//
// A [Table] has items, which are runs of rows, and chooses those that are sampled:
// [TypedWriter.Item] creates them, and [Typed.Sampler] returns batches of their rows.
//
// Where the columns are known only when the program runs, [OpenClient] returns a client whose rows
// are a [Batch]:
//
//	config := &replayv1.ReplayConfig{Capacity: 50_000, Columns: []*tensorv1.Column{
//		replay.Column[float32]("observation", 4),
//		replay.Column[int32]("action"),
//	}}
//	handle, err := replayv1raylink.CreateReplay(ctx, rt, config)
//	buffer, err := replay.OpenClient(ctx, handle)
//	batch, err := buffer.NewBatch(1)
//	observation, err := replay.Values[float32](batch, "observation") // copy an observation into it
//	_, err = buffer.Writer().Append(ctx, batch)
package replay

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
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
		func(ctx context.Context, self *runtime.Node, config *replayv1.ReplayConfig) (replayv1raylink.ReplayNode, error) {
			n, err := createNode(self, config)
			if err != nil {
				return nil, err
			}
			n.log = self.Logger()
			if err := n.begin(ctx, config.GetRestore()); err != nil {
				return nil, errors.Join(connectError(err), n.discard())
			}
			self.OnStop(func(context.Context) error { return n.close() })
			return n, nil
		}).Preparing(makeAbsolute)
}

// createNode creates a node with the configured file, or with a new one in a directory.
func createNode(self *runtime.Node, config *replayv1.ReplayConfig) (*node, error) {
	if config.GetFile() != "" {
		return openNode(config, self.Ref().NodeRef(), self.Logger())
	}
	directory := config.GetDirectory()
	if directory == "" {
		directory = self.RunDirectory().Mapped()
	}
	if !filepath.IsAbs(directory) {
		// The creator did not link this package, which makes paths absolute.
		return nil, connect.Errorf(connect.CodeInvalidArgument,
			"create replay: directory %q is relative: use an absolute path", directory)
	}
	return newNode(directory, self.NID(), config)
}

// makeAbsolute makes paths absolute in the process that creates the replay. The replay's process
// and those that use it have other working directories.
func makeAbsolute(config proto.Message) error {
	c, ok := config.(*replayv1.ReplayConfig)
	if !ok {
		return nil
	}
	for _, path := range []*string{&c.Directory, &c.File, &c.Restore} {
		if *path == "" {
			continue
		}
		absolute, err := filepath.Abs(*path)
		if err != nil {
			return fmt.Errorf("make the replay's path %q absolute: %w", *path, err)
		}
		*path = absolute
	}
	return nil
}

// Batch is a set of rows outside the replay, stored by column.
type Batch = ring.Batch

// Rows has typed columns: a [Batch], or a [Span] of an area.
type Rows = ring.Rows

// Values returns the named column as a slice of its elements, row after row, without a copy.
func Values[T ring.Element](rows Rows, name string) ([]T, error) { return ring.Values[T](rows, name) }

// Column returns the description of a column with elements of type T, for a replay whose rows are
// not those of a message. Without a shape it has one element per row. A column of bool, float16 or
// bfloat16 has to be written out.
func Column[T ring.Element](name string, shape ...uint64) *tensorv1.Column {
	var zero T
	var dtype tensorv1.DataType
	switch any(zero).(type) {
	case uint8:
		dtype = tensorv1.DataType_DATA_TYPE_UINT8
	case uint16:
		dtype = tensorv1.DataType_DATA_TYPE_UINT16
	case uint32:
		dtype = tensorv1.DataType_DATA_TYPE_UINT32
	case uint64:
		dtype = tensorv1.DataType_DATA_TYPE_UINT64
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
	return &tensorv1.Column{Name: name, Dtype: dtype, Shape: shape}
}

// newNode creates a node and its ring. The file's name contains the node's id, so that the next
// incarnation finds the file that this one left behind.
func newNode(directory, nid string, config *replayv1.ReplayConfig) (*node, error) {
	layout, err := configured(config)
	if err != nil {
		return nil, invalidConfig(err)
	}
	tables, err := newTables(config.GetTables())
	if err != nil {
		return nil, invalidConfig(err)
	}
	if err := removeStale(directory, nid); err != nil {
		return nil, err
	}
	r, err := ring.Create(filepath.Join(directory, fileName(nid, rand.Text())), layout)
	if err != nil {
		return nil, connectError(err)
	}
	w, err := r.Writer()
	if err != nil {
		return nil, errors.Join(err, r.Remove(), r.Close())
	}
	return nodeOf(r, w, config, tables), nil
}

// nodeOf returns a node with a ring and tables.
func nodeOf(r *ring.Ring, w *ring.WriteHead, config *replayv1.ReplayConfig, ts *tables) *node {
	return &node{ring: r, writer: w, rowSize: r.Layout().RowBytes(), columns: cloneColumns(config.GetColumns()), tables: ts, log: slog.Default()}
}

// invalidConfig returns the error of a configuration, from which [CreateError] restores its type.
func invalidConfig(err error) error {
	err = fmt.Errorf("configure replay: %w", err)
	if known, ok := errors.AsType[*connect.Error](connectError(err)); ok {
		return known
	}
	return connect.NewError(connect.CodeInvalidArgument, err.Error()).WithCause(err)
}

// configured returns the layout of a configuration, or why there can't be such a ring.
func configured(config *replayv1.ReplayConfig) (ring.Layout, error) {
	layout := layoutOf(config.GetColumns(), config.GetCapacity())
	var err error
	switch {
	case config.GetCapacityBytes() == 0:
		err = layout.Validate()
	case config.GetCapacity() != 0:
		err = fmt.Errorf("%w: its capacity is both %d rows and %d bytes: set one of them",
			ring.ErrLayout, config.GetCapacity(), config.GetCapacityBytes())
	default:
		layout, err = layout.Fitted(config.GetCapacityBytes())
	}
	if err != nil {
		return ring.Layout{}, err
	}
	if size := layout.RowBytes(); size > maxRowBytes {
		return ring.Layout{}, fmt.Errorf("%w: a row has %d bytes, and at most %d are possible: clients on other machines get it in one message",
			ring.ErrLayout, size, uint64(maxRowBytes))
	}
	for i, c := range config.GetColumns() {
		if size, n := layout.Columns[i].DType.Size(), len(c.GetInitial()); n != 0 && n != size {
			return ring.Layout{}, fmt.Errorf("%w: column %q has an initial value of %d bytes, and its elements have %d",
				ring.ErrLayout, c.GetName(), n, size)
		}
	}
	return layout, nil
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
