package replaytest

import (
	"context"
	"errors"
	"fmt"
	"os"

	replayv1 "github.com/raylink/raylink/gen/raylink/replay/v1"
	"github.com/raylink/raylink/services/replay"
	"github.com/raylink/raylink/services/replay/ring"
)

// auditor compares a replay to which nothing is written with the records.
type auditor struct {
	*life

	faults []string
	// newest and oldest are the sequence numbers that rows can have.
	newest, oldest uint64
	memory         *memory
}

// auditBatch is how many items the auditor draws at once.
const auditBatch = 64

func (a *auditor) faultf(format string, args ...any) {
	if len(a.faults) < 20 {
		a.faults = append(a.faults, fmt.Sprintf(format, args...))
	}
}

// audit returns what is wrong, and what was checked. Up to lost items of the queue may be missing.
func (l *life) audit(ctx context.Context, lost int) (faults []string, text string, err error) {
	entries, err := readRecords(os.Getenv(records), l.number)
	if err != nil {
		return nil, "", err
	}
	a := &auditor{life: l, memory: newMemory(l.number, capacity)}
	readable, err := a.rows(ctx, entries)
	if err != nil {
		return nil, "", err
	}
	if l.file {
		a.keys(entries)
		return a.faults, fmt.Sprintf("%d entries, %d rows readable", len(entries), readable), nil
	}
	items, err := a.items(ctx, entries, lost)
	if err != nil {
		return nil, "", err
	}
	drawn, err := a.draws(ctx, entries)
	if err != nil {
		return nil, "", err
	}
	return a.faults, fmt.Sprintf("%d entries, %d rows readable, %d items, %d draws", len(entries), readable, items, drawn), nil
}

// rows checks that all rows that were acknowledged and not overwritten can be read.
func (a *auditor) rows(ctx context.Context, entries []entry) (int, error) {
	// A row of its own has the highest number that was allocated, but for those of its own run.
	w := a.typed.Client().Writer()
	b, err := a.typed.NewBatch(1)
	if err != nil {
		return 0, err
	}
	content{writer: poison + 1, number: 1, life: a.number}.write(&b.Columns, 0, func() {})
	if _, err := w.Append(ctx, b.Batch()); err != nil {
		return 0, err
	}
	a.newest = b.Sequences()[0]
	a.oldest = a.newest + 1 - min(a.newest+1, capacity)
	area, err := a.typed.Newest(ctx, capacity)
	if err != nil {
		return 0, err
	}
	found := make(map[uint64]content)
	places := make(map[[2]uint64]uint64)
	spans := area.Spans()
	for i := range spans {
		sequences := spans[i].Sequences()
		contents, err := a.memory.checkRows(&spans[i].Columns, sequences, true)
		if err != nil {
			a.faultf("%v", err)
			continue
		}
		for k, c := range contents {
			found[sequences[k]] = c
			at := [2]uint64{c.writer, c.number}
			if other, twice := places[at]; twice && c.writer != poison+1 {
				a.faultf("rows %d and %d are the same: %+v", other, sequences[k], c)
			}
			places[at] = sequences[k]
		}
	}
	if err := area.Release(); err != nil {
		return 0, err
	}
	for _, e := range entries {
		for i := range e.Count {
			if e.Kind != rowsEntry || e.Sequence+i < a.oldest {
				continue
			}
			if c, ok := found[e.Sequence+i]; !ok {
				a.faultf("an acknowledged row is lost: row %d, number %d of writer %d; the newest is %d", e.Sequence+i, e.Number+i, e.Writer, a.newest)
			} else if c.writer != e.Writer || c.number != e.Number+i {
				a.faultf("an acknowledged row is lost: row %d, number %d of writer %d, is %+v", e.Sequence+i, e.Number+i, e.Writer, c)
			}
		}
	}
	return len(found), nil
}

// items checks that all items that were acknowledged and whose rows were not overwritten are in
// their tables, with their keys.
func (a *auditor) items(ctx context.Context, entries []entry, lost int) (int, error) {
	sampled := make(map[uint64]bool)
	for _, e := range entries {
		if e.Kind == sampledEntry {
			if sampled[e.Key] {
				a.faultf("an item of the queue was sampled twice: %+v", e)
			}
			sampled[e.Key] = true
		}
	}
	var tables [queueTable + 1][]entry
	for _, e := range entries {
		if e.Kind == itemEntry && e.Sequence >= a.oldest && (e.Table != queueTable || !sampled[e.Key]) {
			tables[e.Table] = append(tables[e.Table], e)
		}
	}
	count := 0
	for table, items := range tables {
		count += len(items)
		missing, err := a.missing(ctx, table, items)
		if err != nil {
			return 0, err
		}
		if table == queueTable && len(missing) <= lost {
			continue
		}
		for _, e := range missing {
			a.faultf("an acknowledged item is lost: %+v, of %d; the oldest row is %d", e, len(items), a.oldest)
		}
	}
	return count, nil
}

// keys checks that no two items have the same key.
func (a *auditor) keys(entries []entry) {
	known := make(map[[2]uint64]entry)
	for _, e := range entries {
		if e.Kind != itemEntry {
			continue
		}
		if other, twice := known[[2]uint64{e.Table, e.Key}]; twice {
			a.faultf("two items have the same key: %+v and %+v", other, e)
		}
		known[[2]uint64{e.Table, e.Key}] = e
	}
}

// missing returns the items that are not in a table. It updates the priorities of the others.
func (a *auditor) missing(ctx context.Context, table int, items []entry) ([]entry, error) {
	if len(items) == 0 {
		return nil, nil
	}
	req := &replayv1.UpdatePrioritiesRequest{Table: tableNames()[table]}
	for _, e := range items {
		req.Keys = append(req.Keys, e.Key)
		id := identity{table: table, writer: e.Writer, first: e.Number, length: int(e.Count), across: e.Across == 1}
		req.Priorities = append(req.Priorities, id.priority(0))
	}
	res, err := a.handle.UpdatePriorities(ctx, req)
	switch half := len(items) / 2; {
	case err != nil || res.GetStale() == 0:
		return nil, err
	case half == 0:
		return items, nil
	default:
		first, err := a.missing(ctx, table, items[:half])
		if err != nil {
			return nil, err
		}
		second, err := a.missing(ctx, table, items[half:])
		return append(first, second...), err
	}
}

// draws checks that each item of the table without replacement is drawn, and that counts add up.
func (a *auditor) draws(ctx context.Context, entries []entry) (int, error) {
	res, err := a.handle.Inspect(ctx, &replayv1.InspectRequest{})
	if err != nil {
		return 0, err
	}
	size := uint64(0)
	for _, t := range res.GetTables() {
		if t.GetSize()+t.GetOverwritten()+t.GetEvicted()+t.GetExhausted()+t.GetDeleted() != t.GetInserted() {
			a.faultf("table %q: %d items were inserted, %d are there, and %d, %d, %d and %d left it", t.GetConfig().GetName(),
				t.GetInserted(), t.GetSize(), t.GetOverwritten(), t.GetEvicted(), t.GetExhausted(), t.GetDeleted())
		}
		if t.GetConfig().GetName() == tableNames()[allTable] {
			size = t.GetSize()
		}
	}
	s, err := a.typed.Sampler(tableNames()[allTable], replay.BatchOf(auditBatch))
	if err != nil {
		return 0, err
	}
	drawn := make(map[uint64]bool)
	t := &task{life: a.life}
	// The rest of an epoch, and a whole one.
	for draws := uint64(0); draws < 2*size; draws += auditBatch {
		b, err := s.Next(ctx)
		if err != nil {
			return 0, err
		}
		if _, err := t.checkBatch(allTable, a.memory, b, auditBatch); err != nil {
			a.faultf("%v", err)
		}
		for _, key := range b.Keys() {
			drawn[key.Number()] = true
		}
	}
	for _, e := range entries {
		if e.Kind == itemEntry && e.Table == allTable && e.Sequence >= a.oldest && !drawn[e.Key] {
			a.faultf("an acknowledged item is not drawn: %+v", e)
		}
	}
	return len(drawn), s.Close()
}

// fill writes a ring of rows by one writer, and checks that it is whole. Batches leave no sequence
// numbers unused.
func (l *life) fill(ctx context.Context, id uint64) (string, error) {
	w := l.typed.Client().Writer()
	for number := uint64(1); number <= capacity; {
		b, err := l.typed.NewBatch(int(min(capacity+1-number, 1+number%997)))
		if err != nil {
			return "", err
		}
		for i := range b.Len() {
			content{writer: id, number: number, life: l.number}.write(&b.Columns, i, func() {})
			number++
		}
		if _, err := w.Append(ctx, b.Batch()); err != nil {
			return "", err
		}
	}
	all, err := l.rowsOf(ctx, id)
	if err != nil {
		return "", err
	}
	stats, err := l.stats(ctx)
	if err != nil {
		return "", err
	}
	if len(all) != capacity || all[capacity-1]-all[0] != capacity-1 || stats.Readable != capacity || stats.Held != 0 || stats.Areas != 0 {
		return "", fmt.Errorf("reservations are lost: of %d rows written, %d are readable, from %d to %d: %+v",
			capacity, len(all), all[0], all[len(all)-1], stats)
	}
	return fmt.Sprintf("%+v", stats), nil
}

// rowsOf returns the sequence numbers of all rows, which must be those of one writer.
func (l *life) rowsOf(ctx context.Context, id uint64) (all []uint64, err error) {
	area, err := l.typed.Newest(ctx, capacity)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, area.Release()) }()
	m := newMemory(l.number, capacity)
	spans := area.Spans()
	for i := range spans {
		contents, err := m.checkRows(&spans[i].Columns, spans[i].Sequences(), true)
		if err != nil {
			return nil, err
		}
		for _, c := range contents {
			if c.writer != id {
				return nil, fmt.Errorf("reservations are lost: a ring of rows was written, and %+v is left", c)
			}
		}
		all = append(all, spans[i].Sequences()...)
	}
	return all, nil
}

// stats returns the ring's statistics.
func (l *life) stats(ctx context.Context) (ring.Stats, error) {
	description, err := l.handle.Describe(ctx, &replayv1.DescribeRequest{})
	if err != nil {
		return ring.Stats{}, err
	}
	id, err := ring.ParseID(description.GetRingId())
	if err != nil {
		return ring.Stats{}, err
	}
	r, err := ring.Open(description.GetFile(), id)
	if err != nil {
		return ring.Stats{}, err
	}
	stats, err := r.Stats()
	return stats, errors.Join(err, r.Close())
}
