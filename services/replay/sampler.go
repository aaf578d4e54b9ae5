package replay

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	replayv1 "github.com/raylink/raylink/gen/raylink/replay/v1"
	"github.com/raylink/raylink/runtime"
	"github.com/raylink/raylink/services/replay/internal/table"
	"github.com/raylink/raylink/services/replay/ring"
)

// SamplerOption configures a [Sampler].
type SamplerOption interface{ applySampler(options *samplerOptions) }

type samplerOptions struct {
	batch, prefetch int
	// length is the number of rows of each item, or 0 for that of the longest.
	length int
	beta   float64
	caller string
}

type samplerOption func(options *samplerOptions)

func (o samplerOption) applySampler(options *samplerOptions) { o(options) }

// BatchOf is the number of items of a batch, by default 256.
func BatchOf(items int) SamplerOption {
	return samplerOption(func(o *samplerOptions) { o.batch = items })
}

// Prefetch is how many batches a sampler draws ahead, by default none. They are drawn with the
// priorities of that time, and count as sampled, also if they are lost with a connection.
func Prefetch(batches int) SamplerOption {
	return samplerOption(func(o *samplerOptions) { o.prefetch = batches })
}

// Length gives all batches the same shape: n rows for each item. Shorter items end with zero rows,
// where the mask is 0. A longer item is an error that matches [ErrItem]. By default a batch has as
// many rows for each item as its longest item.
func Length(n int) SamplerOption {
	return samplerOption(func(o *samplerOptions) { o.length = n })
}

// Weights is the exponent of the importance weights of a table with the sampler [Prioritized]. By
// default it is 0, so that all weights are 1.
func Weights(exponent float64) SamplerOption {
	return samplerOption(func(o *samplerOptions) { o.beta = exponent })
}

func (c CallerOption) applySampler(options *samplerOptions) { options.caller = string(c) }

const defaultBatchOf = 256

// ItemInfo describes a sampled item as it was after the draw.
type ItemInfo struct {
	Key Key
	// Sequences are the sequence numbers of the item's rows. They are valid as long as the batch.
	Sequences []uint64
	// Probability is that with which the draw had this result; Weight is the importance weight: see
	// [Weights].
	Probability, Weight float64
	Priority            float64
	// Sampled is how often the item has been drawn, this time included.
	Sampled uint32
	// TableSize is the number of the table's items.
	TableSize uint64
	// Age is the time since the item was inserted.
	Age time.Duration
	// Held means that the limiter made the call wait for this draw.
	Held bool
}

// SampledBatch is a full batch of items, and a copy of their rows.
type SampledBatch[C any] struct {
	// Columns has Length rows for each item, back to back. Shorter items end with zero rows.
	Columns C
	// Mask has an element for each row of Columns: 1, or 0 for one that only fills up its item.
	Mask []uint8
	// Info describes the items, in the order of Columns.
	Info []ItemInfo
	// Length is the number of rows of the longest item, or that of the option [Length].
	Length int
	// Replaced is how many more items were drawn, because rows of theirs were overwritten before
	// they were copied.
	Replaced int

	rows *Batch
	// view has the rows instead, if they are in the memory of a response. stream is that which the
	// batch was received on, in a number of responses.
	view      *Batch
	stream    *sampleStream[C]
	responses uint64
	// ring is that of the rows.
	ring  string
	bytes [][]byte
}

// Len returns the number of items.
func (b *SampledBatch[C]) Len() int { return len(b.Info) }

// Keys returns the keys of the items. They remain valid.
func (b *SampledBatch[C]) Keys() []Key {
	keys := make([]Key, len(b.Info))
	for i := range b.Info {
		keys[i] = b.Info[i].Key
	}
	return keys
}

// Sampler samples a table. [Sampler.Update] is safe for concurrent use; Next is not.
type Sampler[C any] struct {
	typed   *Typed[C]
	config  table.Config
	options samplerOptions
	head    *ReadHead
	// blocked is what the limiter waited for when the node last said so, and call the call that
	// waits at the node.
	blocked atomic.Pointer[string]
	call    atomic.Uint64

	// ctx is ended by Close, and by that of the client.
	ctx    context.Context //nolint:containedctx // see above
	cancel context.CancelCauseFunc

	// These belong to the goroutine that draws. pending are items of a ring that have no place in a
	// batch yet. unfinished is a batch that is not full, and apart memory for replaced items.
	// returned is how many items have to be given back to the limiter.
	pending    sampledItems
	ring       string
	unfinished *SampledBatch[C]
	apart      *Batch
	returned   uint32
	// last is the batch that Next returned; free has those that may be used again.
	last *SampledBatch[C]
	free chan *SampledBatch[C]
	// fetching means that a goroutine draws: ahead, or one batch for which the limiter waits. It
	// sends to fetched, an error last. taken has an element for each batch that Next has got since.
	fetching bool
	fetched  chan fetched[C]
	taken    chan struct{}
	fetcher  sync.WaitGroup

	// stream is that of a sampler that has not mapped the ring, or nil; unary means that there
	// can't be any.
	stream *sampleStream[C]
	unary  atomic.Bool
}

type fetched[C any] struct {
	batch *SampledBatch[C]
	err   error
	// last means that nothing more is drawn.
	last bool
}

// Sampler returns a sampler of a table. An unknown table is an error that matches [ErrTable]. A
// sampler is to be closed; closing the client does it too.
func (t *Typed[C]) Sampler(tableName string, options ...SamplerOption) (*Sampler[C], error) {
	chosen := samplerOptions{batch: defaultBatchOf}
	for _, o := range options {
		o.applySampler(&chosen)
	}
	switch {
	case chosen.batch < 1 || chosen.batch > maxSampledItems:
		return nil, fmt.Errorf("sample batches of %d items: %w: 1 to %d are possible", chosen.batch, ErrArgument, maxSampledItems)
	case chosen.length < 0 || uint64(chosen.length) > t.client.layout.Capacity:
		return nil, fmt.Errorf("sample items of %d rows: %w: the ring has %d", chosen.length, ErrArgument, t.client.layout.Capacity)
	case chosen.prefetch < 0:
		return nil, fmt.Errorf("prefetch %d batches: %w: it must not be negative", chosen.prefetch, ErrArgument)
	case !(chosen.beta >= 0) || math.IsInf(chosen.beta, 0):
		return nil, fmt.Errorf("sample with weights of exponent %g: %w: it must be finite and not negative", chosen.beta, ErrArgument)
	}
	if err := t.client.opened(); err != nil {
		return nil, err
	}
	config, err := t.client.table(tableName)
	if err != nil {
		return nil, fmt.Errorf("sample: %w", err)
	}
	s := &Sampler[C]{
		typed: t, config: config, options: chosen, head: t.client.Reader(nil),
		free: make(chan *SampledBatch[C], chosen.prefetch+1), fetched: make(chan fetched[C], chosen.prefetch),
		taken: make(chan struct{}, chosen.prefetch),
	}
	s.ctx, s.cancel = context.WithCancelCause(t.client.ctx)
	return s, nil
}

// Close ends what is drawn ahead: these items count as sampled, and those of a queue are lost. The
// batch that Next returned last stays valid.
func (s *Sampler[C]) Close() error {
	s.cancel(ring.ErrClosed)
	s.fetcher.Wait()
	return nil
}

// Next returns the next batch. It is valid until the next call of Next, which uses its memory.
//
// The batch is full: an item of which a row was overwritten between the draw and the copy is
// replaced, counted, and given back to the limiter. All of its rows are those of one incarnation of
// the replay.
//
// On another machine the node copies and sends the rows, on a stream that stays open. If that is
// lost, Next returns an error, which says how much had arrived; what was on its way counts as
// sampled. The next call of Next opens another stream. If the replay was restarted, Next goes on
// with the new one.
//
// Next waits for the table's limiter. If the context ends first, the error matches [ErrBlocked] and
// the context's error, and says what the limiter waits for. The draw keeps its place among those
// that wait, and its items are the batch of the next call of Next. If the node ends, or its process
// does, Next returns an error within a second.
func (s *Sampler[C]) Next(ctx context.Context) (*SampledBatch[C], error) {
	if s.ctx.Err() != nil {
		return nil, fmt.Errorf("sample table %q: %w", s.config.Name, context.Cause(s.ctx))
	}
	s.recycle()
	begin := time.Now()
	b, err := s.next(ctx)
	if err == nil {
		s.last = b
		return b, nil
	}
	if cause := ctx.Err(); cause != nil {
		known, waited := "", time.Since(begin).Round(time.Millisecond)
		if blocked := s.blocked.Load(); blocked != nil {
			known = *blocked
		}
		return nil, fmt.Errorf("sample table %q: %w: waited %v for %s: %w",
			s.config.Name, ErrBlocked, waited, s.typed.client.waitingFor(s.config.Name, s.call.Load(), known), cause)
	}
	return nil, fmt.Errorf("sample table %q: %w", s.config.Name, err)
}

// recycle reclaims the batch that Next returned last.
func (s *Sampler[C]) recycle() {
	b := s.last
	if b == nil {
		return
	}
	s.last = nil
	if b.stream != nil {
		b.stream.release(b.responses)
		b.stream, b.view = nil, nil
	}
	select {
	case s.free <- b:
	default:
	}
}

// next returns the next batch, from a stream or drawn by calls.
func (s *Sampler[C]) next(ctx context.Context) (*SampledBatch[C], error) {
	if !s.fetching {
		streams, err := s.streams(ctx)
		if err != nil {
			return nil, err
		}
		if streams {
			b, err := s.nextStreamed(ctx)
			if !errors.Is(err, errNoStreams) {
				return b, err
			}
		}
		if s.options.prefetch == 0 {
			if b, err := s.draw(ctx, false); b != nil || err != nil {
				return b, err
			}
		}
		s.fetcher.Add(1)
		if err := s.typed.client.start(s.fetch); err != nil {
			s.fetcher.Done()
			return nil, err
		}
		s.fetching = true
	}
	select {
	case got := <-s.fetched:
		s.fetching = !got.last
		if s.options.prefetch > 0 && s.fetching {
			s.taken <- struct{}{}
		}
		return got.batch, got.err
	case <-ctx.Done():
		return nil, ctx.Err() //nolint:wrapcheck // Next adds the operation
	case <-s.ctx.Done():
		return nil, context.Cause(s.ctx)
	}
}

// fetch draws one batch, or ahead.
func (s *Sampler[C]) fetch(context.Context) {
	defer s.fetcher.Done()
	next := fetched[C]{last: true}
	if s.options.prefetch == 0 {
		next.batch, next.err = s.draw(s.ctx, true)
	} else {
		next.batch, next.err = s.drawAhead()
	}
	select {
	case s.fetched <- next:
	case <-s.ctx.Done():
	}
}

// draw draws a full batch, or goes on with an unfinished one. It returns none if the limiter blocks
// it and it should not wait.
func (s *Sampler[C]) draw(ctx context.Context, wait bool) (*SampledBatch[C], error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(s.ctx, func() { cancel(context.Cause(s.ctx)) })()
	for blocked := false; ; {
		if b, err := s.fill(ctx); b != nil || err != nil {
			return b, err
		}
		if blocked && !wait {
			return nil, nil //nolint:nilnil // neither a batch nor an error
		}
		// The first call finds out that the limiter waits, and for what. The next one waits.
		var err error
		if blocked, err = s.response(ctx, s.request(ctx, s.missing(), blocked)); err != nil {
			return nil, err
		}
	}
}

// missing returns how many items the unfinished batch lacks.
func (s *Sampler[C]) missing() int {
	if s.unfinished == nil {
		return s.options.batch
	}
	return s.options.batch - s.unfinished.Len()
}

// itemsCall is a call of the node that draws a number of items.
type itemsCall struct {
	future *runtime.Future[*replayv1.SampleItemsResponse]
	items  int
}

// request asks the node for items. If the limiter blocks some of them, the node waits, or returns
// fewer.
func (s *Sampler[C]) request(ctx context.Context, items int, wait bool) *itemsCall {
	req := &replayv1.SampleItemsRequest{
		Table: s.config.Name, Beta: s.options.beta, Caller: s.options.caller,
		Items: uint32(items), Returned: s.returned, Columns: true, RingId: s.ring, //nolint:gosec // at most maxSampledItems
	}
	if wait {
		req.WaitMs, req.Call = math.MaxUint32, newCall()
	}
	s.call.Store(req.GetCall())
	s.returned = 0
	return &itemsCall{s.typed.client.Handle().SampleItemsAsync(ctx, req), items}
}

// response waits for the response to a request, and keeps the items. It reports whether the limiter
// has blocked some of them.
func (s *Sampler[C]) response(ctx context.Context, call *itemsCall) (blocked bool, err error) {
	defer call.future.Cancel()
	var res *replayv1.SampleItemsResponse
	get := func(ctx context.Context) (err error) {
		res, err = call.future.Get(ctx)
		return err
	}
	select {
	case <-call.future.Done():
		err = ringError(get(ctx))
	default:
		err = s.typed.client.whileServed(ctx, get)
	}
	if err != nil {
		return false, err
	}
	s.blocked.Store(nil)
	if res.GetBlocked() != nil {
		text := res.GetBlocked().GetText()
		s.blocked.Store(&text)
	}
	items, err := sampledItemsIn(res.GetColumns())
	if err != nil {
		return false, err
	}
	if items.left() > call.items {
		return false, fmt.Errorf("invalid response from the replay: %w: %d items instead of %d", ring.ErrBatch, items.left(), call.items)
	}
	if s.ring != res.GetRingId() {
		s.ring, s.returned = res.GetRingId(), 0 // the replay was restarted
	}
	s.pending = items
	return res.GetBlocked() != nil, nil
}

// fill adds pending items to the unfinished batch, which it returns once that is full.
func (s *Sampler[C]) fill(ctx context.Context) (*SampledBatch[C], error) {
	if s.pending.left() == 0 {
		return nil, nil //nolint:nilnil // as said
	}
	b := s.unfinished
	if b == nil {
		var err error
		if b, err = s.emptyBatch(""); err != nil {
			return nil, err
		}
		s.unfinished = b
	}
	if s.ring != b.ring {
		b.restart(s.ring) // also where the replay was restarted meanwhile
	}
	if err := s.copyRows(ctx, b, min(s.missing(), s.pending.left())); err != nil || s.missing() > 0 {
		return nil, err
	}
	s.unfinished = nil
	return b, b.finish(s.typed)
}

// emptyBatch returns a batch for rows of a ring: one that may be used again, or another.
func (s *Sampler[C]) emptyBatch(ring string) (*SampledBatch[C], error) {
	select {
	case b := <-s.free:
		b.restart(ring)
		b.Replaced = 0
		return b, nil
	default:
	}
	rows, err := s.typed.client.NewBatch(0)
	if err != nil {
		return nil, err
	}
	return &SampledBatch[C]{ring: ring, rows: rows, bytes: make([][]byte, len(rows.Layout().Columns))}, nil
}

// restart empties a batch, for rows of a ring.
func (b *SampledBatch[C]) restart(id string) {
	b.Info, b.Length, b.ring = b.Info[:0], 0, id
}

// copyRows adds pending items to a batch, but for those of which a row was overwritten.
func (s *Sampler[C]) copyRows(ctx context.Context, b *SampledBatch[C], n int) error {
	before, first := b.Len(), s.pending
	length := max(b.Length, s.options.length)
	b.Info = slices.Grow(b.Info, n)
	for range n {
		info, err := s.pending.next(b.ring, s.config.Name, s.typed.client.layout.Capacity)
		if rows := info.Key.rows; err == nil && s.options.length > 0 && rows > s.options.length {
			err = longItem(uint64(rows), uint64(s.options.length)) //nolint:gosec // positive
		}
		if err != nil {
			return s.giveUp(b, before, first, err)
		}
		length = max(length, info.Key.rows)
		b.Info = append(b.Info, info)
	}
	sequences := make([]uint64, 0, length*n)
	firsts, lengths := first.columns.GetFirsts()[first.run:], first.columns.GetLengths()[first.run:]
	for i, run := 0, 0; i < n; i++ {
		for rows := b.Info[before+i].Key.rows; rows > 0; run++ {
			sequences = appendRun(sequences, firsts[run], lengths[run])
			rows -= int(lengths[run])
		}
		for len(sequences) < length*(i+1) {
			sequences = append(sequences, ring.NoRow)
		}
	}
	into := b.rows
	if before > 0 {
		if s.apart == nil {
			apart, err := s.typed.client.NewBatch(0)
			if err != nil {
				return err
			}
			s.apart = apart
		}
		into = s.apart
	}
	lost, err := s.head.at(ctx, b.ring, sequences, into)
	if err != nil {
		return s.giveUp(b, before, first, err)
	}
	gone := make([]bool, n)
	for _, i := range lost {
		gone[i/length] = true
	}
	kept := 0
	for i := range n {
		if gone[i] {
			s.returned++
			b.Replaced++
			continue
		}
		moveRows(into, kept*length, i*length, length)
		copy(sequences[kept*length:], sequences[i*length:(i+1)*length])
		b.Info[before+kept] = b.Info[before+i]
		kept++
	}
	b.Info = b.Info[:before+kept]
	if err := into.Resize(kept * length); err != nil {
		return err
	}
	into.SetSequences(sequences[:kept*length])
	if into == b.rows {
		b.Length = length
		return nil
	}
	if err := b.lengthen(length, before); err != nil {
		return err
	}
	return b.rows.AppendRows(into)
}

// giveUp returns the items from first on to the limiter, after an error. The batch keeps those
// before.
func (s *Sampler[C]) giveUp(b *SampledBatch[C], before int, first sampledItems, err error) error {
	b.Info, s.pending = b.Info[:before], sampledItems{}
	s.returned += uint32(first.left()) //nolint:gosec // at most maxSampledItems
	return err
}

// moveRows copies n rows of a batch to other places of it.
func moveRows(b *Batch, to, from, n int) {
	if to == from || n == 0 {
		return
	}
	for c := range b.Layout().Columns {
		bytes := b.Bytes(c)
		size := len(bytes) / b.Rows()
		copy(bytes[to*size:(to+n)*size], bytes[from*size:(from+n)*size])
	}
}

// lengthen makes room for longer items.
func (b *SampledBatch[C]) lengthen(length, items int) error {
	if length == b.Length {
		return nil
	}
	longer, err := ring.NewBatch(b.rows.Layout(), items*length)
	if err != nil {
		return err
	}
	sequences := make([]uint64, items*length)
	for i := range sequences {
		sequences[i] = ring.NoRow
	}
	for i := range items {
		for c := range b.bytes {
			old, into := b.rows.Bytes(c), longer.Bytes(c)
			size := len(old) / (items * b.Length)
			copy(into[i*length*size:], old[i*b.Length*size:(i+1)*b.Length*size])
		}
		copy(sequences[i*length:], b.rows.Sequences()[i*b.Length:(i+1)*b.Length])
	}
	longer.SetSequences(sequences)
	b.rows, b.Length = longer, length
	return nil
}

// finish sets what depends on all rows.
func (b *SampledBatch[C]) finish(t *Typed[C]) error {
	all := b.rows
	if b.view != nil {
		all = b.view
	}
	sequences := all.Sequences()
	b.Mask = b.Mask[:0]
	for i := range b.Info {
		rows := sequences[i*b.Length : (i+1)*b.Length]
		n := 0
		for _, s := range rows {
			mask := uint8(0)
			if s != ring.NoRow {
				mask = 1
				n++
			}
			b.Mask = append(b.Mask, mask)
		}
		b.Info[i].Sequences = rows[:n:n]
	}
	for i := range b.bytes {
		b.bytes[i] = all.Bytes(i)
	}
	return t.row.View(&b.Columns, all.Rows(), b.bytes)
}

// Update changes the priorities of items, and returns how many of these have left the table, or
// were items of an earlier incarnation of the replay: their update changes nothing. A priority that
// is negative, not finite or too high is an error that matches [ErrPriority], and another number of
// priorities than keys one that matches [ErrArgument]; nothing is changed then.
//
// Updates that are made at the same time, by any samplers of a table and client, travel together:
// those that begin while a call to the node is in flight share the next one. If the context ends
// while the update is on its way, it may or may not be made.
func (s *Sampler[C]) Update(ctx context.Context, keys []Key, priorities []float64) (stale int, err error) {
	if len(keys) != len(priorities) {
		return 0, fmt.Errorf("update %d priorities of table %q: %w: there are %d keys", len(priorities), s.config.Name, ErrArgument, len(keys))
	}
	requests := make(map[string]*replayv1.UpdatePrioritiesRequest, 1)
	for i, key := range keys {
		if err := s.config.CheckPriority(i, priorities[i]); err != nil {
			return 0, fmt.Errorf("update priorities of table %q: %w", s.config.Name, err)
		}
		req := requests[key.ring]
		if req == nil {
			req = &replayv1.UpdatePrioritiesRequest{Table: s.config.Name, RingId: key.ring}
			requests[key.ring] = req
		}
		req.Keys, req.Priorities = append(req.Keys, key.in(s.config.Name)), append(req.Priorities, priorities[i])
	}
	for _, req := range requests {
		n, updateErr := s.typed.client.updates.update(ctx, req)
		stale += n
		err = errors.Join(err, updateErr)
	}
	return stale, err
}
