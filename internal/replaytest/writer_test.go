package replaytest

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/raylink/raylink/internal/proctest"
	"github.com/raylink/raylink/services/replay"
)

// writer writes rows, and records those that were acknowledged.
type writer struct {
	*task

	id uint64
	// number is that of the next row, began that of the first one since the writer was renewed, and
	// episode that of the first row of the episode.
	number, began, episode uint64
	// after is one more than the sequence number of the last row.
	after uint64

	typed *replay.TypedWriter[columns]
	head  *replay.WriteHead
	// earlier are those before the writer was renewed, with items on their way.
	earlier []*replay.TypedWriter[columns]
	// last are the sequence numbers of the last rows.
	last []uint64
	// pending are items that the node has not confirmed.
	pending []pending
}

type pending struct {
	key   *replay.PendingKey
	entry entry
}

func (t *task) newWriter(id uint64) (*writer, error) {
	w := &writer{task: t, id: id, number: 1}
	return w, w.renew()
}

// renew makes the writer begin anew, because it is unknown whether rows were written.
func (w *writer) renew() (err error) {
	if len(w.pending) == 0 {
		w.earlier = nil
	} else {
		w.earlier = append(w.earlier, w.typed)
	}
	w.began, w.episode, w.last = w.number, w.number, nil
	w.head = w.life.typed.Client().Writer()
	w.typed, err = w.life.typed.Writer(replay.History(history), replay.Caller(fmt.Sprint("writer ", w.id)))
	return err
}

// fill returns a function that writes the next rows. In some of them it pauses in the middle, where
// the process may be killed or stopped.
func (w *writer) fill() func(rows *columns) {
	slow := w.random.IntN(8) == 0
	return func(rows *columns) {
		for i := range rows.Writer {
			c := content{writer: w.id, number: w.number + uint64(i), episode: w.episode, after: w.after, life: w.life.number}
			c.write(rows, i, func() {
				if slow && i == len(rows.Writer)/2 {
					w.rest(time.Duration(w.random.IntN(5000)) * time.Microsecond)
				}
			})
		}
	}
}

// append appends n rows: in place, or as a batch.
func (w *writer) append(ctx context.Context, n int, batch bool) error {
	var sequences []uint64
	var err error
	if batch {
		sequences, err = w.appendBatch(ctx, n)
	} else {
		err = w.typed.Append(ctx, n, w.fill())
		if err == nil && !w.life.typed.Client().Mapped() {
			err = w.typed.Flush(ctx) // until then the rows are on their way
		}
		sequences = w.typed.Sequences()
	}
	return w.appended(n, sequences, err)
}

func (w *writer) appendBatch(ctx context.Context, n int) ([]uint64, error) {
	b, err := w.life.typed.NewBatch(n)
	if err != nil {
		return nil, err
	}
	w.fill()(&b.Columns)
	written, err := w.head.Append(ctx, b.Batch())
	if written != len(b.Sequences()) {
		w.fault(fmt.Errorf("%d rows were written, with %d sequence numbers", written, len(b.Sequences())))
	}
	return b.Sequences(), err
}

// appended checks and records what was written.
func (w *writer) appended(n int, sequences []uint64, err error) error {
	if err == nil && len(sequences) != n {
		w.fault(fmt.Errorf("%d rows were written, with %d sequence numbers", n, len(sequences)))
	}
	for _, s := range sequences {
		if s < w.after {
			w.fault(fmt.Errorf("a writer's row has number %d after %d", s, w.after-1))
		}
		w.after = s + 1
	}
	w.last = append(w.last, sequences...)
	w.last = w.last[max(0, len(w.last)-history):]
	recordErr := w.record.add(runs(w.life.number, w.id, w.number, sequences)...)
	w.count.Add(int64(len(sequences)))
	w.number += uint64(n)
	if err != nil {
		// Of rows that were sent to the node, some may have been written.
		err = errors.Join(err, w.renew())
	}
	return errors.Join(err, recordErr)
}

// panics writes rows that must not become readable.
func (w *writer) panics(ctx context.Context, n int) (err error) {
	const reason = "the test's panic"
	defer func() {
		if p := recover(); p != nil && p != reason {
			panic(p)
		}
	}()
	return errors.Join(w.typed.Append(ctx, n, func(rows *columns) {
		for i := range rows.Writer {
			content{writer: poison, number: 1, life: w.life.number}.write(rows, i, func() {})
		}
		panic(reason)
	}), errors.New("a panic did not go on"))
}

// writeRows writes rows in all ways, and makes no call if the ring is mapped.
func (t *task) writeRows(first uint64) error {
	inPlace, err := t.newWriter(first)
	if err != nil {
		return err
	}
	batches, err := t.newWriter(first + 1)
	if err != nil {
		return err
	}
	for t.ctx.Err() == nil {
		t.step(func(ctx context.Context) error {
			k := t.random.IntN(100)
			if t.calm.Load() {
				k %= 80
			}
			switch {
			case k < 80:
				return inPlace.append(ctx, 1+t.random.IntN(8), false)
			case k < 84:
				return inPlace.append(ctx, 1+t.random.IntN(256), false)
			case k < 85:
				return inPlace.append(ctx, 256+t.random.IntN(256), false)
			case k < 86:
				return inPlace.panics(ctx, 1+t.random.IntN(8))
			case k < 98:
				return batches.append(ctx, 1+t.random.IntN(8), true)
			default:
				return batches.append(ctx, 1+t.random.IntN(500), true)
			}
		})
		t.pause(400 * time.Microsecond)
	}
	return nil
}

// writeItems writes episodes, and items of their rows into two tables.
func (t *task) writeItems(first uint64) error {
	return t.writeEpisodes(first, func() int { return t.random.IntN(2) })
}

// writeQueue writes episodes, and items of their rows into the queue.
func (t *task) writeQueue(first uint64) error {
	return t.writeEpisodes(first, func() int { return queueTable })
}

func (t *task) writeEpisodes(first uint64, table func() int) error {
	w, err := t.newWriter(first)
	if err != nil {
		return err
	}
	for t.ctx.Err() == nil {
		t.step(func(ctx context.Context) error {
			if err := w.append(ctx, 1+t.random.IntN(3), false); err != nil {
				return err
			}
			for range t.random.IntN(3) {
				if err := w.item(ctx, table()); err != nil {
					return err
				}
			}
			if t.random.IntN(30) == 0 {
				w.tooLong(ctx, table())
			}
			if t.random.IntN(12) == 0 {
				w.episode = w.number
				if err := w.typed.EndEpisode(ctx); err != nil {
					return w.lost(err)
				}
			}
			return w.settle()
		})
		t.pause(time.Millisecond)
	}
	return w.flush()
}

// item creates an item of the last rows.
func (w *writer) item(ctx context.Context, table int) error {
	across := w.random.IntN(8) == 0
	available := w.number - w.episode
	if across {
		available = w.number - w.began
	}
	if available = min(available, history); available == 0 {
		return nil
	}
	length := 1 + w.random.IntN(int(available))
	id := identity{table: table, writer: w.id, first: w.number - uint64(length), length: length, across: across}
	var options []replay.ItemOption
	var mark uint64
	if across {
		options, mark = append(options, replay.AcrossEpisodes()), 1
	}
	begin := clock()
	key, err := w.typed.Item(ctx, tableNames()[table], length, id.priority(0), options...)
	if err != nil {
		return w.lost(err)
	}
	w.pending = append(w.pending, pending{key: key, entry: entry{
		Kind: itemEntry, Life: w.life.number, Writer: w.id, Number: id.first, Sequence: w.last[len(w.last)-length],
		Count: uint64(length), Table: uint64(table), Across: mark, Begin: begin,
	}})
	return nil
}

// tooLong tries to create an item with a row of an earlier episode, or one too many.
func (w *writer) tooLong(ctx context.Context, table int) {
	_, err := w.typed.Item(ctx, tableNames()[table], int(w.number-w.episode)+1, 1)
	if refused := (*replay.HistoryError)(nil); err == nil || ctx.Err() == nil && !errors.As(w.lost(err), &refused) {
		w.fault(fmt.Errorf("an item crosses an episode's end: %w", err))
	}
}

// settle records the items that were confirmed.
func (w *writer) settle() error {
	var entries []entry
	left, end := w.pending[:0], clock()
	for _, p := range w.pending {
		key, confirmed := p.key.Get()
		if !confirmed {
			left = append(left, p)
		} else if p.entry.Key = key.Number(); p.entry.Key != 0 {
			p.entry.End = end
			entries = append(entries, p.entry)
		}
	}
	w.pending = left
	w.count.Add(int64(len(entries)))
	return w.record.add(entries...)
}

// lost forgets items that may have been lost.
func (w *writer) lost(err error) error {
	if unconfirmed, ok := errors.AsType[*replay.UnconfirmedError](err); ok {
		settleErr := w.settle()
		w.pending = nil
		return errors.Join(unconfirmed, settleErr)
	}
	return err
}

// flush waits until all items are confirmed.
func (w *writer) flush() error {
	if w.closing.Load() {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), proctest.Patience)
	defer cancel()
	var err error
	for _, typed := range append(w.earlier, w.typed) {
		flushErr := typed.Flush(ctx)
		if _, ok := errors.AsType[*replay.UnconfirmedError](flushErr); ok && w.file {
			flushErr = w.settle() // the others were lost with the node before
			w.pending = nil
		}
		err = errors.Join(err, flushErr)
	}
	if err == nil {
		if err = w.settle(); err == nil && len(w.pending) > 0 && !w.closing.Load() {
			return fmt.Errorf("%d items are not confirmed after Flush", len(w.pending))
		}
		return err
	}
	if w.closing.Load() {
		return nil
	}
	return fmt.Errorf("hang: flush: %w", err)
}
