package replay

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	replayv1 "github.com/raylink/raylink/gen/raylink/replay/v1"
	"github.com/raylink/raylink/gen/raylink/replay/v1/replayv1raylink"
	"github.com/raylink/raylink/services/replay/internal/checkpoint"
	"github.com/raylink/raylink/services/replay/internal/table"
	"github.com/raylink/raylink/services/replay/ring"
)

// progressInterval is how often a checkpoint reports its progress.
const progressInterval = 200 * time.Millisecond

// Checkpoint copies the rows and tables to a directory.
func (n *node) Checkpoint(ctx context.Context, req *replayv1.CheckpointRequest, stream replayv1raylink.ReplayCheckpointServerStream) error {
	last, err := n.checkpoint(ctx, req.GetDirectory(), stream.Send)
	if err != nil {
		return connectError(err)
	}
	return stream.Send(last)
}

// checkpoint writes a checkpoint.
//
// The tables come first, and then the rows, the oldest first, because these are the next to be
// overwritten. So all rows of the items were in the ring when the copy of the rows began. Those
// that writers overwrote before they were copied are missing, and so are their items, which are
// therefore filtered last.
func (n *node) checkpoint(
	ctx context.Context, directory string, progress func(*replayv1.CheckpointResponse) error,
) (_ *replayv1.CheckpointResponse, err error) {
	needed, err := n.checkpointSize()
	if err != nil {
		return nil, err
	}
	w, err := checkpoint.Create(directory, needed)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, w.Abort()) }()
	manifest := &replayv1.CheckpointManifest{
		Version: checkpoint.Version, Made: timestamppb.Now(), RingId: n.ring.ID().String(),
		Columns: cloneColumns(n.columns), Capacity: n.ring.Layout().Capacity,
	}
	for i, name := range n.tables.names {
		described, err := n.copyTable(ctx, w, i, name)
		if err != nil {
			return nil, err
		}
		manifest.Tables = append(manifest.Tables, described)
	}
	copied, err := n.copyRows(ctx, w, manifest, progress)
	if err != nil {
		return nil, err
	}
	done := &replayv1.CheckpointResponse{Rows: manifest.GetRows(), Total: manifest.GetRows(), Done: true, Lost: manifest.GetLost()}
	for i, t := range manifest.GetTables() {
		if t.Items, t.LeftOut, t.File, err = w.Filter(i, func(s *table.State) (bool, error) { return copied.has(s), ctx.Err() }); err != nil {
			return nil, err
		}
		done.Tables = append(done.Tables, &replayv1.CheckpointedTable{Name: t.GetConfig().GetName(), Items: t.GetItems(), LeftOut: t.GetLeftOut()})
	}
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("write a checkpoint to %s: %w", directory, err)
	}
	if err := w.Commit(manifest); err != nil {
		return nil, err
	}
	done.Bytes = w.Bytes()
	return done, nil
}

// itemSize is about what an item has in a checkpoint, in bytes.
const itemSize = 40

// checkpointSize returns about how large a checkpoint is. While it is written, the items are there
// twice.
func (n *node) checkpointSize() (uint64, error) {
	stats, err := n.ring.Stats()
	if err != nil {
		return 0, err
	}
	return stats.Readable*n.rowSize + 2*itemSize*uint64(n.tables.sizes()), nil //nolint:gosec // not negative
}

// copyTable writes all items of a table.
func (n *node) copyTable(ctx context.Context, w *checkpoint.Writer, index int, name string) (*replayv1.CheckpointManifestTable, error) {
	t, err := n.table(ctx, name)
	if err != nil {
		return nil, err
	}
	// Before the items are listed: none of them has older rows. The counts are those after it, so
	// that they include all of the items.
	oldest := t.Meta().Oldest
	from := uint32(0)
	err = w.Items(index, func(states []table.State) (int, error) {
		var listed int
		listed, from = t.Items(from, states)
		return listed, ctx.Err()
	})
	if err != nil {
		return nil, fmt.Errorf("copy table %q: %w", name, err)
	}
	meta, config := t.Meta(), t.Configuration()
	c := meta.Counts
	return &replayv1.CheckpointManifestTable{
		Config: &replayv1.TableConfig{
			Name: name, Sampler: selectorMessage(config.Sampler), Remover: selectorMessage(config.Remover),
			MaxItems: uint64(config.MaxItems), MaxSampled: config.MaxSampled, Limiter: limiterMessage(config.Limiter), //nolint:gosec // positive
		},
		Inserted: c.Inserted, Sampled: c.Sampled, Overwritten: c.Overwritten, Late: c.Late, Evicted: c.Evicted,
		Exhausted: c.Exhausted, Deleted: c.Deleted, Stale: c.Stale, Returned: c.Returned,
		Difference: meta.Difference, Lost: uint64(meta.Lost), Oldest: oldest, Number: meta.Number, Epoch: meta.Epoch, //nolint:gosec // not negative
	}, nil
}

// copyRows writes all rows, and completes the manifest. It returns which rows there are.
func (n *node) copyRows(
	ctx context.Context, w *checkpoint.Writer, manifest *replayv1.CheckpointManifest, progress func(*replayv1.CheckpointResponse) error,
) (*presence, error) {
	h, err := n.ring.Reader()
	if err != nil {
		return nil, err
	}
	batch, err := ring.NewBatch(n.ring.Layout(), 0)
	if err != nil {
		return nil, err
	}
	next, err := n.ring.Next(ctx)
	if err != nil {
		return nil, err
	}
	oldest, chunk := next-min(next, n.ring.Layout().Capacity), checkpoint.RowsPerChunk(n.ring.Layout())
	copied := newPresence(oldest, next)
	reported := time.Now()
	for from := oldest; from < next; from += chunk {
		to := min(from+chunk, next)
		overwritten, err := h.Between(ctx, from, to, batch)
		if err == nil {
			err = w.Rows(batch)
		}
		if err != nil {
			return nil, err
		}
		copied.add(batch.Sequences())
		manifest.Rows += uint64(batch.Rows()) //nolint:gosec // not negative
		manifest.Lost += overwritten
		if now := time.Now(); now.Sub(reported) >= progressInterval {
			reported = now
			// Numbers that no row has count as rows, so that the total does not change.
			if err := progress(&replayv1.CheckpointResponse{Rows: to - oldest, Total: next - oldest, Bytes: w.Bytes()}); err != nil {
				return nil, err
			}
		}
	}
	manifest.Next = next
	manifest.File, err = w.EndRows()
	return copied, err
}

// presence is a set of rows with numbers from first to next.
type presence struct {
	first, next uint64
	bits        []uint64
}

func newPresence(first, next uint64) *presence {
	return &presence{first: first, next: next, bits: make([]uint64, (next-first+63)/64)}
}

func (p *presence) add(sequences []uint64) {
	for _, s := range sequences {
		p.bits[(s-p.first)/64] |= 1 << ((s - p.first) % 64)
	}
}

// has reports whether all rows of an item are in the set.
func (p *presence) has(s *table.State) bool {
	return hasRows(s, func(first uint64, rows uint32) bool {
		if first < p.first || first >= p.next || uint64(rows) > p.next-first {
			return false
		}
		for i := first - p.first; i < first-p.first+uint64(rows); i++ {
			if p.bits[i/64]&(1<<(i%64)) == 0 {
				return false
			}
		}
		return true
	})
}

// hasRows reports whether all runs of an item are there.
func hasRows(s *table.State, has func(first uint64, rows uint32) bool) bool {
	if !has(s.Run.First, s.Run.Length) {
		return false
	}
	for _, r := range s.More {
		if !has(r.First, r.Length) {
			return false
		}
	}
	return true
}
