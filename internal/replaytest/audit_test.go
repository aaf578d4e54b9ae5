package replaytest

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"slices"

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
	// found are the rows that are readable.
	found map[uint64]content

	kills []killed
	// items are those that were acknowledged and whose rows were not overwritten.
	items [queueTable + 1]map[uint64]*audited
	// sampled is when each item of the queue was sampled.
	sampled map[uint64]killed
	// calls are those that change items whose rows were not overwritten.
	calls   map[uint64][]*change
	entries int
	// kept is how many items there must be since before the last kill.
	kept int
}

// audited is an item with what has happened to it.
type audited struct {
	entry   entry
	changes []*change
}

// change is one of an item's priority, or its deletion.
type change struct {
	deleted bool
	version uint64
	// begin is before and end after it: never, if it was not acknowledged.
	begin, end int64
}

// auditBatch is how many items the auditor draws at once.
const auditBatch = 64

func (a *auditor) faultf(format string, args ...any) {
	if len(a.faults) < 20 {
		a.faults = append(a.faults, fmt.Sprintf(format, args...))
	}
}

// audit returns what is wrong, and what was checked. Up to lost items of the queue may be missing,
// and what nodes that were killed have not saved.
func (l *life) audit(ctx context.Context, lost int, kills []killed) (res answer, err error) {
	a := &auditor{
		life: l, memory: newMemory(l.number, capacity), found: make(map[uint64]content), kills: kills,
		sampled: make(map[uint64]killed), calls: make(map[uint64][]*change),
	}
	for table := range a.items {
		a.items[table] = make(map[uint64]*audited)
	}
	if err := a.rows(ctx); err != nil {
		return res, err
	}
	// First the items, because others may have changed them.
	for _, visit := range []func(*entry){a.addItem, a.addOther} {
		if err := visitRecords(os.Getenv(records), l.number, visit); err != nil {
			return res, err
		}
	}
	checked, err := a.tables(ctx, lost)
	if err != nil {
		return res, err
	}
	drawn, err := a.draws(ctx)
	if err != nil {
		return res, err
	}
	return answer{Faults: a.faults, Kept: a.kept, Text: fmt.Sprintf("%d entries, %d rows readable, %d items of %d, %d and %d, %d since before the kill, %d draws",
		a.entries, len(a.found), checked, len(a.items[perTable]), len(a.items[allTable]), len(a.items[queueTable]), a.kept, drawn)}, nil
}

// rows reads all rows.
func (a *auditor) rows(ctx context.Context) error {
	// A row of its own has the highest number that was allocated, but for those of its own run.
	w := a.typed.Client().Writer()
	b, err := a.typed.NewBatch(1)
	if err != nil {
		return err
	}
	content{writer: poison + 1, number: 1, life: a.number}.write(&b.Columns, 0, func() {})
	if _, err := w.Append(ctx, b.Batch()); err != nil {
		return err
	}
	a.newest = b.Sequences()[0]
	a.oldest = a.newest + 1 - min(a.newest+1, capacity)
	area, err := a.typed.Newest(ctx, capacity)
	if err != nil {
		return err
	}
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
			a.found[sequences[k]] = c
			at := [2]uint64{c.writer, c.number}
			if other, twice := places[at]; twice && c.writer != poison+1 {
				a.faultf("rows %d and %d are the same: %+v", other, sequences[k], c)
			}
			places[at] = sequences[k]
		}
	}
	return area.Release()
}

// addItem adds an item, or checks that rows that were acknowledged and not overwritten can be read.
func (a *auditor) addItem(e *entry) {
	a.entries++
	switch {
	case e.Kind == rowsEntry:
		for i := range e.Count {
			if e.Sequence+i < a.oldest {
				continue
			}
			if c, ok := a.found[e.Sequence+i]; !ok {
				a.faultf("an acknowledged row is lost: row %d, number %d of writer %d; the newest is %d", e.Sequence+i, e.Number+i, e.Writer, a.newest)
			} else if c.writer != e.Writer || c.number != e.Number+i {
				a.faultf("an acknowledged row is lost: row %d, number %d of writer %d, is %+v", e.Sequence+i, e.Number+i, e.Writer, c)
			}
		}
	case e.Kind == itemEntry && e.Sequence >= a.oldest:
		if other := a.items[e.Table][e.Key]; other != nil {
			a.faultf("two items have the same key: %+v and %+v", other.entry, *e)
		}
		a.items[e.Table][e.Key] = &audited{entry: *e, changes: []*change{{begin: e.Begin, end: e.End}}}
	}
}

// never is the time of what was not acknowledged.
const never = math.MaxInt64

// addOther adds what has happened to items.
func (a *auditor) addOther(e *entry) {
	switch e.Kind {
	case sampledEntry:
		// Until the node has saved that, the next one may return the item once more.
		if before, twice := a.sampled[e.Key]; twice && survives(a.kills, min(before.From, e.Begin), min(before.To, e.End)) {
			a.faultf("an item of the queue was sampled twice: %+v", *e)
		}
		a.sampled[e.Key] = killed{From: e.Begin, To: e.End}
	case updateEntry, deleteEntry:
		if item := a.items[e.Table][e.Key]; item != nil {
			c := &change{deleted: e.Kind == deleteEntry, version: e.Version, begin: e.Begin, end: never}
			item.changes, a.calls[e.Call] = append(item.changes, c), append(a.calls[e.Call], c)
		}
	case doneEntry:
		for _, c := range a.calls[e.Call] {
			c.end = e.End
		}
		delete(a.calls, e.Call)
	}
}

// lasting reports whether a change was acknowledged, and not lost with a node.
func (a *auditor) lasting(c *change) bool { return c.end != never && survives(a.kills, c.begin, c.end) }

// tables checks that the tables have all items that were acknowledged and whose rows were not
// overwritten, with the priorities of the last update, and none that has left its table. It returns
// how many there must be.
func (a *auditor) tables(ctx context.Context, lost int) (int, error) {
	count := 0
	for table, items := range a.items {
		there := make(map[uint64]float64)
		for item, err := range a.typed.Client().Items(ctx, tableNames()[table]) {
			if err != nil {
				return 0, err
			}
			there[item.Key.Number()] = item.Priority
		}
		var missing []*audited
		for key, item := range items {
			priority, ok := there[key]
			if ok {
				a.checkItem(table, key, item, priority)
			}
			if a.mustBeThere(table, key, item) {
				if n := len(a.kills); n > 0 && item.entry.End < a.kills[n-1].From {
					a.kept++
				}
				if count++; !ok {
					missing = append(missing, item)
				}
			}
		}
		if table == queueTable && len(missing) <= lost {
			continue
		}
		for _, item := range missing {
			a.faultf("an acknowledged item is lost: %+v, of %d; the oldest row is %d", item.entry, len(items), a.oldest)
		}
	}
	return count, nil
}

// mustBeThere reports whether an item was acknowledged, not lost with a node, not deleted and not
// sampled.
func (a *auditor) mustBeThere(table int, key uint64, item *audited) bool {
	_, sampled := a.sampled[key]
	return (table != queueTable || !sampled) && a.lasting(item.changes[0]) &&
		!slices.ContainsFunc(item.changes, func(c *change) bool { return c.deleted })
}

// checkItem checks an item that is in its table. Its priority is that of an update after which no
// other one was made that has not been lost.
func (a *auditor) checkItem(table int, key uint64, item *audited, priority float64) {
	if at, sampled := a.sampled[key]; table == queueTable && sampled && survives(a.kills, at.From, at.To) {
		a.faultf("an item that left the queue is there again: %+v", item.entry)
	}
	e, latest := &item.entry, int64(math.MinInt64)
	id := identity{table: table, writer: e.Writer, first: e.Number, length: int(e.Count), across: e.Across == 1}
	if !id.hasPriority(priority) {
		a.faultf("an item has the priority of another one, %x: %+v", math.Float64bits(priority), *e)
		return
	}
	for _, c := range item.changes {
		if !a.lasting(c) {
			continue
		}
		if c.deleted {
			a.faultf("an item that was deleted is there again: %+v", *e)
		}
		latest = max(latest, c.begin)
	}
	for _, c := range item.changes {
		if !c.deleted && c.version == version(priority) && c.end >= latest {
			return
		}
	}
	a.faultf("an acknowledged priority is lost: %+v has version %d, of %+v", *e, version(priority), item.changes)
}

// draws checks that each item of the table without replacement is drawn, and that counts add up.
func (a *auditor) draws(ctx context.Context) (int, error) {
	res, err := a.typed.Client().Handle().Inspect(ctx, &replayv1.InspectRequest{})
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
	for key, item := range a.items[allTable] {
		if a.mustBeThere(allTable, key, item) && !drawn[key] {
			a.faultf("an acknowledged item is not drawn: %+v", item.entry)
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
	description, err := l.typed.Client().Handle().Describe(ctx, &replayv1.DescribeRequest{})
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
