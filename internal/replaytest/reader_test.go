package replaytest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/raylink/raylink/services/replay"
	"github.com/raylink/raylink/services/replay/ring"
)

// read samples, reads and holds rows, and makes no call if the ring is mapped.
func (t *task) read(uint64) error {
	m := newMemory(t.number, capacity)
	reader := t.typed.Reader(t.random)
	batch, err := t.typed.NewBatch(0)
	if err != nil {
		return err
	}
	for t.ctx.Err() == nil {
		t.step(func(ctx context.Context) error {
			var err error
			kind := t.random.IntN(10)
			switch {
			case kind < 5:
				err = reader.Sample(ctx, 1+t.random.IntN(64), batch)
			case kind < 7:
				err = reader.Newest(ctx, 1+t.random.IntN(300), batch)
			default:
				err = t.hold(ctx, reader, m)
				kind = -1
			}
			if errors.Is(err, ring.ErrEmpty) {
				t.rest(time.Millisecond)
				return nil
			}
			if err == nil && kind >= 0 {
				if _, err := m.checkRows(&batch.Columns, batch.Sequences(), kind >= 5); err != nil {
					t.fault(err)
				}
			}
			return err
		})
	}
	return nil
}

// hold holds an area, which must not change meanwhile. Some of them are large and held for so long
// that writers come to them.
func (t *task) hold(ctx context.Context, reader *replay.TypedReader[columns], m *memory) error {
	n, most := 300, 3*time.Millisecond
	if t.random.IntN(20) == 0 {
		n, most = capacity/4, 300*time.Millisecond
	}
	area, err := reader.Hold(ctx, 1+t.random.IntN(n))
	if err != nil {
		return err
	}
	for range 2 {
		spans := area.Spans()
		for i := range spans {
			if _, err := m.checkRows(&spans[i].Columns, spans[i].Sequences(), true); err != nil {
				t.fault(fmt.Errorf("in an area: %w", err))
			}
		}
		t.rest(time.Duration(t.random.Int64N(int64(most))))
	}
	return area.Release()
}

// starve waits for items of a table that gets none. It must end when the node dies.
func (t *task) starve(uint64) error {
	s, err := t.typed.Sampler(tableNames()[starvedTable], replay.BatchOf(1))
	if err != nil {
		return err
	}
	for t.ctx.Err() == nil {
		t.count.Add(1)
		_, err := s.Next(t.ctx)
		if err == nil {
			return errors.New("a table without items returned some")
		}
		if t.ctx.Err() == nil {
			t.tell(fail(answer{Event: releasedEvent}, err))
			t.rest(20 * time.Millisecond)
		}
	}
	return s.Close()
}

// checkBatch checks the items of a batch, and returns them.
func (t *task) checkBatch(table int, m *memory, b *replay.SampledBatch[columns], items int) ([]identity, error) {
	if b.Len() != items || len(b.Mask) != items*b.Length || len(b.Columns.Writer) != items*b.Length {
		return nil, fmt.Errorf("a batch of %d items has %d: %d rows each, %d rows, a mask of %d",
			items, b.Len(), b.Length, len(b.Columns.Writer), len(b.Mask))
	}
	all := make([]identity, items)
	for i, info := range b.Info {
		var contents []content
		for k := range b.Length {
			at := i*b.Length + k
			if b.Mask[at] == 0 {
				if k < len(info.Sequences) || b.Columns.Sum[at] != 0 || b.Columns.Payload[at*payloadWords] != 0 {
					return nil, fmt.Errorf("row %d of item %d is masked: it has %d rows", k, i, len(info.Sequences))
				}
				continue
			}
			c, err := readRow(&b.Columns, at)
			if err == nil && k >= len(info.Sequences) {
				err = fmt.Errorf("the mask has more than the %d rows of the item", len(info.Sequences))
			}
			if err == nil {
				err = m.check(info.Sequences[k], c)
			}
			if err != nil {
				return nil, fmt.Errorf("row %d of item %d, key %v, rows %d: %w", k, i, info.Key, info.Sequences, err)
			}
			contents = append(contents, c)
		}
		id, err := identify(table, contents, info.Priority)
		if err != nil {
			return nil, fmt.Errorf("item %d, key %v, rows %d: %w", i, info.Key, info.Sequences, err)
		}
		all[i] = id
	}
	return all, nil
}

// sampler samples a table until the tasks end, and passes batches on that were checked.
func (t *task) sampler(table, items int, then func(ctx context.Context, s *replay.Sampler[columns], b *replay.SampledBatch[columns], ids []identity) error,
	options ...replay.SamplerOption,
) (err error) {
	m := newMemory(t.number, capacity)
	s, err := t.typed.Sampler(tableNames()[table], append(options, replay.BatchOf(items), replay.Caller(t.name))...)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	t.drawn = clock()
	for t.ctx.Err() == nil {
		t.step(func(ctx context.Context) error {
			b, err := s.Next(ctx)
			if err != nil {
				return err
			}
			defer func() { t.drawn = clock() }()
			ids, err := t.checkBatch(table, m, b, items)
			if err != nil {
				t.fault(err)
				return nil
			}
			return then(ctx, s, b, ids)
		})
	}
	return nil
}

// samplePrioritized samples with batches drawn ahead, updates priorities, and deletes some items.
func (t *task) samplePrioritized(uint64) error {
	return t.sampler(perTable, 16, func(ctx context.Context, s *replay.Sampler[columns], b *replay.SampledBatch[columns], ids []identity) error {
		// An item that is there twice gets the same priority twice.
		priorities, versions := make([]float64, len(ids)), make(map[uint64]uint64)
		entries := make([]entry, len(ids))
		for i, id := range ids {
			key := b.Info[i].Key.Number()
			if versions[key] == 0 {
				versions[key] = 1 + t.random.Uint64N(versionsOfUpdates)
			}
			priorities[i] = id.priority(versions[key])
			entries[i] = entry{
				Kind: updateEntry, Life: t.number, Sequence: b.Info[i].Sequences[0], Count: uint64(id.length),
				Table: perTable, Key: key, Version: versions[key],
			}
		}
		err := t.recorded(entries, func() error {
			_, err := s.Update(ctx, b.Keys(), priorities)
			return err
		})
		if err != nil || t.random.IntN(10) > 0 {
			return err
		}
		last := entries[len(entries)-1]
		last.Kind = deleteEntry
		return t.recorded([]entry{last}, func() error {
			_, err := t.typed.Client().Delete(ctx, tableNames()[perTable], b.Keys()[len(ids)-1:])
			return err
		})
	}, replay.Prefetch(4), replay.Weights(0.4))
}

// versionsOfUpdates is how many priorities an update can choose.
const versionsOfUpdates = versions - 1

// recorded makes a call, and records before and afterwards what it changes.
func (t *task) recorded(entries []entry, call func() error) error {
	number, begin := uint64(os.Getpid())<<32|t.calls.Add(1), clock()
	for i := range entries {
		entries[i].Call, entries[i].Begin = number, begin
	}
	if err := t.record.add(entries...); err != nil {
		return err
	}
	if err := call(); err != nil {
		return err
	}
	return t.record.add(entry{Kind: doneEntry, Life: t.number, Call: number, Begin: begin, End: clock()})
}

// sampleAll samples without replacement.
func (t *task) sampleAll(uint64) error {
	return t.sampler(allTable, 8, func(context.Context, *replay.Sampler[columns], *replay.SampledBatch[columns], []identity) error {
		t.rest(time.Duration(t.random.IntN(1000)) * time.Microsecond)
		return nil
	})
}

// consume records the items of a queue.
func (t *task) consume(uint64) error {
	return t.sampler(queueTable, queueBatch, func(_ context.Context, _ *replay.Sampler[columns], b *replay.SampledBatch[columns], ids []identity) error {
		entries := make([]entry, len(ids))
		for i, id := range ids {
			entries[i] = entry{
				Kind: sampledEntry, Life: t.number, Writer: id.writer, Number: id.first, Sequence: b.Info[i].Sequences[0],
				Count: uint64(id.length), Table: queueTable, Key: b.Info[i].Key.Number(), Begin: t.drawn, End: clock(),
			}
		}
		return t.record.add(entries...)
	})
}
