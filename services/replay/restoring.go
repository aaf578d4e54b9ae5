package replay

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"path/filepath"
	"slices"

	replayv1 "github.com/raylink/raylink/gen/raylink/replay/v1"
	"github.com/raylink/raylink/services/replay/internal/checkpoint"
	"github.com/raylink/raylink/services/replay/internal/table"
	"github.com/raylink/raylink/services/replay/ring"
)

// begin restores a checkpoint, if one is named, before the node serves anything. A file that was
// taken over and has rows is newer than the checkpoint.
func (n *node) begin(ctx context.Context, directory string) error {
	if directory == "" {
		return nil
	}
	if n.file != nil && errors.Is(n.vacant(), ErrNotEmpty) {
		n.log.Info("the checkpoint was not restored: the replay's file has rows", slog.String("checkpoint", directory))
		return nil
	}
	_, err := n.restore(ctx, directory)
	return err
}

// Restore fills an empty replay from a checkpoint.
func (n *node) Restore(ctx context.Context, req *replayv1.RestoreRequest) (*replayv1.RestoreResponse, error) {
	restored, err := n.restore(ctx, req.GetDirectory())
	if err != nil {
		return nil, connectError(err)
	}
	return &replayv1.RestoreResponse{Restored: restored}, nil
}

// restore reads all of a checkpoint before it changes anything that a caller could see: rows become
// readable, and tables get their items, once the last checksum was right.
func (n *node) restore(ctx context.Context, directory string) (_ *replayv1.Restored, err error) {
	r, err := checkpoint.Open(filepath.Clean(directory))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	m := r.Manifest()
	restored := &replayv1.Restored{Directory: directory, Made: m.GetMade()}
	if restored.Differences, err = n.compare(directory, m); err != nil {
		return nil, err
	}
	if err := n.vacant(); err != nil {
		return nil, fmt.Errorf("restore the checkpoint %s: %w", directory, err)
	}
	loader, err := n.ring.Load(m.GetNext())
	if err != nil {
		return nil, fmt.Errorf("restore the checkpoint %s: %w", directory, err)
	}
	defer func() { err = errors.Join(err, loader.Abort()) }()
	if err := r.Rows(ctx, n.ring.Layout(), loader.Put); err != nil {
		return nil, err
	}
	restored.Rows, restored.Dropped = loader.Rows(), m.GetRows()-loader.Rows()
	if restored.GetDropped() > 0 {
		restored.Differences = append(restored.Differences,
			fmt.Sprintf("the oldest %d rows are dropped: there is room for %d", restored.GetDropped(), n.ring.Layout().Capacity))
	}
	var tables, copies []*table.Table
	for i, saved := range m.GetTables() {
		t := n.tables.byName[saved.GetConfig().GetName()]
		rt := &restoring{reader: r, index: i, saved: saved, loader: loader}
		if t == nil { // its file must be complete all the same
			if err := rt.count(ctx, nil); err != nil {
				return nil, err
			}
			continue
		}
		c, described, err := rt.restore(ctx, t.Configuration())
		if err != nil {
			return nil, err
		}
		tables, copies = append(tables, t), append(copies, c)
		restored.Tables = append(restored.Tables, described)
		restored.Differences = append(restored.Differences, dropped(described)...)
	}
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("restore the checkpoint %s: %w", directory, err)
	}
	if err := n.adopt(tables, copies, loader.Commit); err != nil {
		return nil, fmt.Errorf("restore the checkpoint %s: %w", directory, err)
	}
	n.restored.Store(restored)
	n.log.Info("the replay was restored", slog.String("checkpoint", directory), slog.Uint64("rows", restored.GetRows()))
	for _, d := range restored.GetDifferences() {
		n.log.Warn("the replay differs from its checkpoint", slog.String("checkpoint", directory), slog.String("difference", d))
	}
	return restored, nil
}

// adopt gives the tables the items of the copies, and calls commit meanwhile: see [table.Adopt].
func (n *node) adopt(tables, copies []*table.Table, commit func() error) error {
	if n.file != nil {
		return n.file.adopt(n.tables, tables, copies, commit)
	}
	return table.Adopt(tables, copies, commit) //nolint:wrapcheck // complete
}

// vacant returns [ErrNotEmpty] if there were rows or items.
func (n *node) vacant() error {
	stats, err := n.ring.Stats()
	if err != nil {
		return err
	}
	if stats.Written > 0 {
		return fmt.Errorf("%w: %d rows were written: restore it before, or create another one", ErrNotEmpty, stats.Written)
	}
	for _, name := range n.tables.names {
		if inserted := n.tables.byName[name].Meta().Counts.Inserted; inserted > 0 {
			return fmt.Errorf("%w: %d items were inserted into table %q: restore it before, or create another one", ErrNotEmpty, inserted, name)
		}
	}
	return nil
}

// compare returns in which way the replay's configuration differs from that of a checkpoint, or why
// its rows can't be restored.
func (n *node) compare(directory string, m *replayv1.CheckpointManifest) ([]string, error) {
	saved := layoutOf(m.GetColumns(), m.GetCapacity())
	if err := saved.Validate(); err != nil {
		return nil, fmt.Errorf("read the checkpoint %s: %w: its columns: %w", directory, ErrCheckpoint, err)
	}
	layout := n.ring.Layout()
	if e, ok := errors.AsType[*SchemaError](compareColumns("", saved.Columns, layout.Columns)); ok {
		return nil, fmt.Errorf("restore the checkpoint %s: %w: column %d, %q, is %s in the checkpoint, and %s in the replay: "+
			"create the replay with the columns of the checkpoint", directory, ring.ErrLayout, e.Index, e.Column, describe(e.Want), describe(e.Got))
	}
	var differences []string
	differs := func(what string, saved, now any) {
		if saved != now {
			differences = append(differences, fmt.Sprintf("%s is %v, and was %v", what, now, saved))
		}
	}
	differs("the capacity in rows", saved.Capacity, layout.Capacity)
	for i, c := range m.GetColumns() {
		differs(fmt.Sprintf("the initial value of column %q", c.GetName()), hex.EncodeToString(c.GetInitial()), hex.EncodeToString(n.columns[i].GetInitial()))
	}
	for _, t := range m.GetTables() {
		name := t.GetConfig().GetName()
		was, err := tableConfig(t.GetConfig())
		if err != nil {
			return nil, fmt.Errorf("read the checkpoint %s: %w: %w", directory, ErrCheckpoint, err)
		}
		if n.tables.byName[name] == nil {
			differences = append(differences, fmt.Sprintf("table %q is not configured: its %d items are dropped", name, t.GetItems()))
			continue
		}
		is := n.tables.byName[name].Configuration()
		what := fmt.Sprintf(" of table %q", name)
		differs("the sampler"+what, was.Sampler, is.Sampler)
		differs("the remover"+what, was.Remover, is.Remover)
		differs("the maximum number of items"+what, was.MaxItems, is.MaxItems)
		differs("the maximum of times sampled"+what, was.MaxSampled, is.MaxSampled)
		differs("the limiter"+what, was.Limiter, is.Limiter)
	}
	for _, name := range n.tables.names {
		if !slices.ContainsFunc(m.GetTables(), func(t *replayv1.CheckpointManifestTable) bool { return t.GetConfig().GetName() == name }) {
			differences = append(differences, fmt.Sprintf("table %q is not in the checkpoint: it is empty", name))
		}
	}
	return differences, nil
}

// dropped says which items of a table were not restored.
func dropped(t *replayv1.RestoredTable) (differences []string) {
	add := func(items uint64, reason string) {
		if items > 0 {
			differences = append(differences, fmt.Sprintf("table %q lacks %d items: %s", t.GetName(), items, reason))
		}
	}
	add(t.GetWithoutRows(), "the replay has no room for their rows")
	add(t.GetWithoutPriority(), "its sampler or remover does not allow their priority")
	add(t.GetEvicted(), "it has room for fewer, and its remover chose them")
	return differences
}

// restoring is the restoration of a table.
type restoring struct {
	reader *checkpoint.Reader
	index  int
	saved  *replayv1.CheckpointManifestTable
	loader *ring.Loader

	// What count found.
	items, withoutRows, withoutPriority uint64
}

// keeps reports whether an item can be restored, and counts it.
func (rt *restoring) keeps(s *table.State, config *table.Config) bool {
	switch {
	case config == nil:
		return false
	case !hasRows(s, rt.loader.Has):
		rt.withoutRows++
		return false
	case config.CheckPriority(0, s.Priority) != nil:
		rt.withoutPriority++
		return false
	}
	rt.items++
	return true
}

// count reads the whole file, which verifies it.
func (rt *restoring) count(ctx context.Context, config *table.Config) error {
	rt.items, rt.withoutRows, rt.withoutPriority = 0, 0, 0
	return rt.reader.Items(ctx, rt.index, func(s *table.State) error {
		rt.keeps(s, config)
		return nil
	})
}

// errEnough ends the reading of items.
var errEnough = errors.New("enough items")

// restore returns a table with the items.
func (rt *restoring) restore(ctx context.Context, config table.Config) (*table.Table, *replayv1.RestoredTable, error) {
	if err := rt.count(ctx, &config); err != nil {
		return nil, nil, err
	}
	limiter, err := limiterOf(rt.saved.GetConfig().GetLimiter())
	if err != nil {
		return nil, nil, err
	}
	saved := rt.saved
	meta := table.Meta{
		Counts: table.Counts{
			Inserted: saved.GetInserted(), Sampled: saved.GetSampled(), Overwritten: saved.GetOverwritten() + rt.withoutRows,
			Late: saved.GetLate(), Evicted: saved.GetEvicted(), Exhausted: saved.GetExhausted(), Deleted: saved.GetDeleted(),
			Stale: saved.GetStale(), Returned: saved.GetReturned(),
		},
		Number: saved.GetNumber(), Epoch: saved.GetEpoch(),
		Limiter: limiter, Difference: saved.GetDifference(), Oldest: max(saved.GetOldest(), rt.loader.First()),
		// Rows for which there is no room are like overwritten ones.
		Lost: bounded(saved.GetLost() + rt.withoutRows),
	}
	again := *rt
	again.items, again.withoutRows, again.withoutPriority = 0, 0, 0
	var readErr error
	var items iter.Seq[table.State] = func(yield func(table.State) bool) {
		readErr = again.reader.Items(ctx, again.index, func(s *table.State) error {
			if again.keeps(s, &config) && !yield(*s) {
				return errEnough
			}
			return nil
		})
	}
	t, err := table.Restore(config, meta, items)
	switch {
	case readErr != nil && !errors.Is(readErr, errEnough):
		return nil, nil, readErr
	case err != nil:
		return nil, nil, fmt.Errorf("%w: %w", ErrCheckpoint, err)
	}
	evicted := t.Meta().Counts.Evicted - meta.Counts.Evicted
	return t, &replayv1.RestoredTable{
		Name: config.Name, Items: again.items - evicted,
		WithoutRows: again.withoutRows, WithoutPriority: again.withoutPriority, Evicted: evicted,
	}, nil
}
