package replay

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"

	"github.com/raylink/raylink/gen/raylink/replay/v1/replayv1raylink"
	"github.com/raylink/raylink/runtime/row"
	"github.com/raylink/raylink/services/replay/ring"
)

// Typed gives a process access to a replay whose rows have the columns C, which the plugin
// generated: see package runtime/row. It is safe for concurrent use.
//
// It is a view of a [Client], and goes on as that does when the replay is restarted.
type Typed[C any] struct {
	client *Client
	row    row.Type[C]
}

// Open returns a client for a replay whose rows are those of a message. It gets the replay's
// description, and maps its ring if that is possible. If the replay has other columns, the error is
// a [SchemaError]; initial values may differ.
func Open[C any](ctx context.Context, handle *replayv1raylink.Replay, rows row.Type[C]) (*Typed[C], error) {
	client, err := OpenClient(ctx, handle)
	if err != nil {
		return nil, err
	}
	typed, err := As(client, rows)
	if err != nil {
		return nil, errors.Join(err, client.Close())
	}
	return typed, nil
}

// As returns a view of a client. Both remain usable, and closing either closes both. The errors are
// those of [Open].
func As[C any](client *Client, rows row.Type[C]) (*Typed[C], error) {
	want := layoutOf(rows.Columns(), client.layout.Capacity)
	if err := compareColumns(rows.Message(), want.Columns, client.layout.Columns); err != nil {
		return nil, fmt.Errorf("open replay: %w", err)
	}
	// This fails only on machines whose memory can't be viewed.
	if err := rows.View(new(C), 0, make([][]byte, len(want.Columns))); err != nil {
		return nil, fmt.Errorf("open replay: %w", err)
	}
	return &Typed[C]{client: client, row: rows}, nil
}

// Client returns the client whose rows are a [Batch].
func (t *Typed[C]) Client() *Client { return t.client }

// Close unmaps the ring. Areas that are held remain valid until they are released.
func (t *Typed[C]) Close() error { return t.client.Close() }

// Newest makes the newest n rows an area, or fewer if fewer are readable: it is
// [TypedReader.Hold].
func (t *Typed[C]) Newest(ctx context.Context, n int) (*TypedArea[C], error) {
	return t.Reader(nil).Hold(ctx, n)
}

// TypedBatch is a set of rows outside the replay. It is not safe for concurrent use.
type TypedBatch[C any] struct {
	// Columns has the rows. What is written there changes the batch. It is set anew whenever the
	// number of rows changes.
	Columns C

	row   row.Type[C]
	rows  *Batch
	bytes [][]byte
}

// NewBatch returns a batch of n rows that have their initial values.
func (t *Typed[C]) NewBatch(n int) (*TypedBatch[C], error) {
	rows, err := t.client.NewBatch(0)
	if err != nil {
		return nil, err
	}
	b := &TypedBatch[C]{row: t.row, rows: rows, bytes: make([][]byte, len(t.client.layout.Columns))}
	return b, b.Reset(n)
}

// Reset makes the batch one of n rows that have their initial values. Columns without one have
// anything in them.
func (b *TypedBatch[C]) Reset(n int) error {
	if err := b.rows.Resize(n); err != nil {
		return err
	}
	if err := b.view(); err != nil {
		return err
	}
	b.row.Initialize(b.bytes)
	return nil
}

// view sets the columns to the batch's memory.
func (b *TypedBatch[C]) view() error {
	for i := range b.bytes {
		b.bytes[i] = b.rows.Bytes(i)
	}
	return b.row.View(&b.Columns, b.rows.Rows(), b.bytes)
}

// Len returns the number of rows.
func (b *TypedBatch[C]) Len() int { return b.rows.Rows() }

// Sequences returns the rows' sequence numbers after they were read.
func (b *TypedBatch[C]) Sequences() []uint64 { return b.rows.Sequences() }

// Batch returns the same rows for heads of the [Client], which share the memory. Its number of rows
// must not be changed.
func (b *TypedBatch[C]) Batch() *Batch { return b.rows }

// TypedReader reads a replay. It is not safe for concurrent use.
type TypedReader[C any] struct {
	typed *Typed[C]
	head  *ReadHead
}

// Reader returns a reader. It draws samples with rng, or with a randomly seeded generator if rng is
// nil.
func (t *Typed[C]) Reader(rng *rand.Rand) *TypedReader[C] {
	return &TypedReader[C]{typed: t, head: t.client.Reader(rng)}
}

// Sample fills a batch with n rows, each drawn independently and uniformly from all readable rows.
// It returns [ring.ErrEmpty] if there are none.
func (r *TypedReader[C]) Sample(ctx context.Context, n int, into *TypedBatch[C]) error {
	return errors.Join(r.head.Sample(ctx, n, into.rows), into.view())
}

// Newest fills a batch with copies of the newest n rows, oldest first, or with fewer if fewer are
// readable. It returns [ring.ErrEmpty] if there are none.
func (r *TypedReader[C]) Newest(ctx context.Context, n int, into *TypedBatch[C]) error {
	return errors.Join(r.head.Newest(ctx, n, into.rows), into.view())
}

// Hold makes the newest n rows an area, or fewer if fewer are readable. It returns [ring.ErrEmpty]
// if there are none.
func (r *TypedReader[C]) Hold(ctx context.Context, n int) (*TypedArea[C], error) {
	held, err := r.head.Hold(ctx, n)
	if err != nil {
		return nil, err
	}
	area := &TypedArea[C]{area: held, spans: make([]TypedSpan[C], len(held.Spans()))}
	columns := make([][]byte, len(r.typed.client.layout.Columns))
	for i, s := range held.Spans() {
		for j := range columns {
			columns[j] = s.Bytes(j)
		}
		if err := r.typed.row.View(&area.spans[i].Columns, s.Len(), columns); err != nil {
			return nil, errors.Join(err, held.Release())
		}
		area.spans[i].numbers = s.numbers
	}
	return area, nil
}

// TypedArea is an [Area] whose rows have the columns C.
type TypedArea[C any] struct {
	area  *Area
	spans []TypedSpan[C]
}

// TypedSpan is a part of an area: rows that are contiguous in memory, oldest first.
type TypedSpan[C any] struct {
	// Columns has the rows. If the ring is mapped, the memory is read-only: writing to it crashes
	// the process.
	Columns C

	numbers numbers
}

// Len returns the number of rows.
func (s *TypedSpan[C]) Len() int { return s.numbers.rows }

// Sequences returns the rows' sequence numbers. Those of an area in place are made by each call.
func (s *TypedSpan[C]) Sequences() []uint64 { return s.numbers.all() }

// Spans returns the area's rows, oldest first. They must not be written to, nor used after Release.
func (a *TypedArea[C]) Spans() []TypedSpan[C] { return a.spans }

// Len returns the number of rows.
func (a *TypedArea[C]) Len() int { return a.area.Len() }

// Release lets writers reuse the rows. Further calls do nothing.
func (a *TypedArea[C]) Release() error {
	a.spans = nil
	return a.area.Release()
}

// TypedWriter writes rows in place. It is not safe for concurrent use; any number of them may write
// to a replay.
type TypedWriter[C any] struct {
	typed *Typed[C]
	// client and view are those of typed, without loads from other memory: see ring.InPlace.
	client *Client
	view   func(rows *C, columns [][]byte)
	// head writes batches: those that go through the node, and those too large to be written in
	// place.
	head *WriteHead
	// ring is what inPlace writes to; both are nil before the first write.
	ring    *ring.Ring
	inPlace *ring.InPlace
	// id is that of ring; wrote is that of the ring that got the last rows.
	id, wrote string
	// history has the last rows, for items; queues have items on their way to tables.
	history history
	queues  map[string]*itemQueue
	options writerOptions
	// together is the maximum number of rows written in place; trusting that of those that rely on
	// trust.
	together, trusting int
	// fill calls write, which is nil between writes, with n rows.
	fill  func(columns [][]byte)
	write func(rows *C)
	n     int
	rows  C
	// initialize is set if a column has an initial value.
	initialize bool
	// trust lets small writes rely on an earlier check of the node.
	trust trust
	// batch is kept for the next write unless it is large.
	batch *TypedBatch[C]
	// The sequence numbers of the last write are those of last, or if that is nil, sequences.
	last      *ring.InPlace
	sequences []uint64
	// outbox sends rows and items where the ring is not mapped. streamed means that it has the rows
	// of the last write, whose context is streaming.
	outbox    *outbox
	streamed  bool
	streaming context.Context //nolint:containedctx // see Sequences
	columns   [][]byte
}

// Writer returns a writer. One that is to create items needs a [History].
func (t *Typed[C]) Writer(options ...WriterOption) (*TypedWriter[C], error) {
	if err := t.client.opened(); err != nil {
		return nil, err
	}
	chosen, err := writerOptionsOf(t.client, options)
	if err != nil {
		return nil, err
	}
	w := &TypedWriter[C]{
		typed: t, client: t.client, view: t.row.Generated.View, head: t.client.Writer(), together: t.client.layout.MaxTogether(),
	}
	w.trusting = int(max(1, maxTrusted/t.client.layout.RowBytes())) //nolint:gosec // at most maxTrusted
	for _, c := range t.row.Columns() {
		w.initialize = w.initialize || len(c.GetInitial()) > 0
	}
	w.fill, w.options, w.history.most = w.fillColumns, chosen, chosen.history
	return w, nil
}

// Append writes n rows; for none it does nothing. It reserves them, sets columns that have an
// initial value to that value, and calls write once with all columns, each with the n rows back to
// back. The columns without an initial value have anything in them: write sets them. The rows
// become readable after write has returned. If write panics or ends its goroutine, none becomes
// readable, and the panic goes on.
//
// The columns are in the mapping where that is possible, and must not be used after write has
// returned. Where the reserved rows are not contiguous, on another machine, and for more rows than
// are written together, they are other memory that is then copied or sent.
//
// Up to 256 rows, or as many as have 1 MiB, are written together: all of them or none, and no
// reader sees some of them before write has returned. More rows become readable in such parts, and
// after an error [TypedWriter.Sequences] has those that were written: the first ones.
//
// Where areas or other writers leave no room, Append waits until they do, or until the context
// ends. The error then is a [ring.NoRoomError], which names the processes in the way and how long
// they have been, and which matches the context's error. Rows written together wait before write is
// called, if the ring is mapped: write is not called if Append fails. If the replay's node dies
// meanwhile, Append returns an error within a second.
//
// Rows that were written after the death of the node's process are lost, though Append returned no
// error: those of writes that began within a millisecond of it, and of up to 63 more by a writer
// whose last 64 writes took less than a millisecond.
//
// While write runs, other writers skip the rows and readers do not see them, so write should not
// block. It may use the replay, but not this writer.
func (w *TypedWriter[C]) Append(ctx context.Context, n int, write func(rows *C)) error {
	return w.append(ctx, n, write, true)
}

// TryAppend is Append, except that it does not wait: it returns a [ring.NoRoomError] if there is no
// room for the rows now.
func (w *TypedWriter[C]) TryAppend(ctx context.Context, n int, write func(rows *C)) error {
	return w.append(ctx, n, write, false)
}

// Sequences returns the sequence numbers of the rows of the last write, in increasing order. They
// are valid until the next write.
//
// Where the ring is not mapped, they are known only when the node has confirmed the rows. Sequences
// then waits for that, but only as long as the stream and the context of the last write last, and
// returns the numbers of the rows that were confirmed: the first ones.
func (w *TypedWriter[C]) Sequences() []uint64 {
	if w.streamed {
		return w.outbox.sequences(w.streaming)
	}
	if w.last != nil {
		return w.last.Sequences()
	}
	return w.sequences
}

// append writes rows, and remembers those that were written for items.
func (w *TypedWriter[C]) append(ctx context.Context, n int, write func(rows *C), wait bool) error {
	trusted := w.last != nil && n <= w.trusting && w.trust.take(w.client) && ctx.Err() == nil
	var columns [][]byte
	if trusted {
		columns = w.last.Begin(n)
	}
	var err error
	switch {
	case columns != nil:
		err = w.appendReserved(columns, write)
	case w.write != nil:
		return fmt.Errorf("%w: the function that writes rows appends others with the same writer", ring.ErrBatch)
	default:
		err = w.appendRows(ctx, n, write, wait, trusted)
	}
	if w.history.most > 0 && w.outbox == nil {
		w.history.add(w.wrote, w.Sequences())
	}
	return err
}

// appendReserved writes rows in the usual case: those before were written in place, too, and these
// were reserved and are locked.
func (w *TypedWriter[C]) appendReserved(columns [][]byte, write func(rows *C)) error {
	written := false
	w.write = write
	defer func() {
		if !written {
			_ = w.endReserved(false) // the panic goes on, or the goroutine ends
		}
	}()
	w.fillColumns(columns)
	written = true
	return w.endReserved(true)
}

func (w *TypedWriter[C]) endReserved(written bool) error {
	var none C
	w.write, w.rows = nil, none // as in appendRows
	return w.last.End(written)
}

// appendRows writes rows. Those of trusted writes rely on an earlier check of the node.
func (w *TypedWriter[C]) appendRows(ctx context.Context, n int, write func(rows *C), wait, trusted bool) error {
	capacity := w.typed.client.layout.Capacity
	if n < 0 || uint64(n) > capacity {
		w.last, w.sequences, w.streamed = nil, nil, false
		return fmt.Errorf("%w: %d rows to append, and the ring has %d", ring.ErrBatch, n, capacity)
	}
	w.last, w.sequences, w.write, w.n = nil, nil, write, n
	w.streamed, w.streaming = false, nil
	defer func() {
		var none C
		w.write, w.rows = nil, none // so that using the columns later fails, instead of changing another row
	}()
	if n > w.together {
		return w.appendLarge(ctx, wait)
	}
	if o := w.outbox; o != nil && wait && n > 0 && ctx.Err() == nil && o.extend(n, w.columns) {
		return w.fillStreamed(ctx)
	}
	if trusted {
		if err := w.appendInPlace(ctx, n, wait); !gone(err) {
			return err
		}
	}
	return w.typed.client.with(ctx, func(r *ring.Ring) error {
		if err := w.leave(ctx, r); err != nil {
			return err
		}
		if err := w.bind(r); err != nil {
			return err
		}
		w.trust.renew(w.typed.client, r)
		return w.appendInPlace(ctx, n, wait)
	}, func() error { return w.stream(ctx, wait) })
}

// appendInPlace writes to the ring that the writer is bound to.
func (w *TypedWriter[C]) appendInPlace(ctx context.Context, n int, wait bool) error {
	w.last, w.wrote = w.inPlace, w.id
	if !wait {
		return w.inPlace.TryAppend(n, w.fill)
	}
	return w.inPlace.Append(ctx, n, w.fill)
}

// appendLarge writes more rows than are written together.
func (w *TypedWriter[C]) appendLarge(ctx context.Context, wait bool) error {
	if err := w.typed.client.opened(); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	r, err := w.typed.client.current(ctx)
	if err != nil {
		return err
	}
	if r == nil {
		return ringError(w.stream(ctx, wait))
	}
	if err := w.leave(ctx, r); err != nil {
		return err
	}
	if err := w.fillBatch(); err != nil {
		return err
	}
	if w.inPlace != nil {
		w.inPlace.DropReserved() // so that the numbers of later rows are higher than those of these
	}
	_, err = w.head.write(ctx, w.batch.rows, wait)
	w.sequences, w.wrote = w.batch.Sequences(), w.head.wrote
	if uint64(w.n)*w.typed.client.layout.RowBytes() > maxChunk { //nolint:gosec // positive
		w.batch = nil
	}
	return err
}

func (w *TypedWriter[C]) bind(r *ring.Ring) error {
	if w.ring == r {
		return nil
	}
	inPlace, err := r.InPlace()
	if err != nil {
		return err
	}
	w.ring, w.inPlace, w.id = r, inPlace, r.ID().String()
	return nil
}

// fillColumns lets write fill columns of a ring.
func (w *TypedWriter[C]) fillColumns(columns [][]byte) {
	if w.initialize {
		w.typed.row.Initialize(columns)
	}
	w.view(&w.rows, columns) // As has made sure of the columns
	w.write(&w.rows)
}

// fillBatch lets write fill the writer's batch.
func (w *TypedWriter[C]) fillBatch() error {
	if w.batch == nil {
		batch, err := w.typed.NewBatch(0)
		if err != nil {
			return err
		}
		w.batch = batch
	}
	if err := w.batch.Reset(w.n); err != nil {
		return err
	}
	w.write(&w.batch.Columns)
	return nil
}

// stream adds rows to those that a stream sends to the node. If it is not to wait, it sends them by
// a call of its own, after all others.
func (w *TypedWriter[C]) stream(ctx context.Context, wait bool) error {
	n := w.n
	if n == 0 {
		return nil
	}
	if w.outbox == nil || w.outbox.ended() {
		w.outbox = newOutbox(w.typed.client, w.options)
		w.columns = make([][]byte, len(w.typed.client.layout.Columns))
	}
	o := w.outbox
	switch {
	case !wait:
		return w.tryStream(ctx)
	case n <= w.together:
		if err := o.reserve(ctx, n, w.columns); err != nil {
			return err
		}
		return w.fillStreamed(ctx)
	default:
		if err := w.fillBatch(); err != nil {
			return err
		}
		if err := o.add(ctx, w.batch.rows); err != nil {
			return err
		}
		if n*o.shape.row > maxChunk {
			w.batch = nil
		}
	}
	w.streamed, w.streaming = true, ctx
	w.history.append(o.key, o.lastFrom, n)
	return nil
}

// fillStreamed lets write fill the rows that the outbox has reserved.
func (w *TypedWriter[C]) fillStreamed(ctx context.Context) error {
	o, filled := w.outbox, false
	defer func() {
		if !filled {
			o.abandon()
		}
	}()
	w.fillColumns(w.columns)
	filled = true
	if err := o.commit(w.n); err != nil {
		return err
	}
	w.streamed, w.streaming = true, ctx
	w.history.append(o.key, o.lastFrom, w.n)
	return nil
}

// tryStream writes rows if there is room for them now.
func (w *TypedWriter[C]) tryStream(ctx context.Context) error {
	o := w.outbox
	if err := o.flush(ctx); err != nil {
		return err
	}
	if err := w.fillBatch(); err != nil {
		return err
	}
	err := w.head.send(ctx, w.batch.rows, false, w.n <= w.together)
	w.sequences = w.batch.Sequences()
	if len(w.sequences) > 0 {
		if openErr := o.adopt(ctx, w.head.wrote, w.sequences); openErr != nil {
			return errors.Join(err, openErr)
		}
		w.history.append(o.key, o.lastFrom, len(w.sequences))
	}
	return err
}

// leave ends the use of a stream, because the ring was mapped meanwhile.
func (w *TypedWriter[C]) leave(ctx context.Context, r *ring.Ring) error {
	o := w.outbox
	if o == nil {
		return nil
	}
	if err := o.flush(ctx); err != nil {
		return err
	}
	w.outbox = nil
	if w.history.ring == o.key {
		w.history.resolve(o, r.ID().String())
	}
	return nil
}
