package replay

import (
	"context"
	"fmt"
	"math"
	"slices"
	"time"

	replayv1 "github.com/raylink/raylink/gen/raylink/replay/v1"
	"github.com/raylink/raylink/runtime"
	"github.com/raylink/raylink/services/replay/internal/table"
	"github.com/raylink/raylink/services/replay/ring"
)

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

// itemsCall is a call of the node that draws a number of items, and gives others back.
type itemsCall struct {
	future   *runtime.Future[*replayv1.SampleItemsResponse]
	items    int
	returned uint32
}

// cancel cancels the call if it is not over. It reads the outcome, because an error that is not
// read is logged.
func (c *itemsCall) cancel() {
	c.future.Cancel()
	_, _ = c.future.Get(context.Background())
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
	return &itemsCall{s.typed.client.Handle().SampleItemsAsync(ctx, req), items, req.GetReturned()}
}

// response waits for the response to a request, and keeps the items. It reports whether the limiter
// has blocked some of them.
func (s *Sampler[C]) response(ctx context.Context, call *itemsCall) (blocked bool, err error) {
	defer call.cancel()
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
		s.returned += call.returned
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

// nextItem sets info to the next of some items of a ring, unless it has more rows than a batch has
// for each.
func (s *Sampler[C]) nextItem(info *ItemInfo, items *sampledItems, id string) error {
	err := items.next(info, id, s.config.Name, s.typed.client.layout.Capacity)
	if rows := info.Key.rows; err == nil && s.options.length > 0 && rows > s.options.length {
		err = longItem(uint64(rows), uint64(s.options.length)) //nolint:gosec // positive
	}
	return err
}

// copyRows adds pending items to a batch, but for those of which a row was overwritten.
func (s *Sampler[C]) copyRows(ctx context.Context, b *SampledBatch[C], n int) error {
	before, first := b.Len(), s.pending
	length := max(b.Length, s.options.length)
	b.Info = slices.Grow(b.Info, n)[:before+n]
	for i := range n {
		info := &b.Info[before+i]
		if err := s.nextItem(info, &s.pending, b.ring); err != nil {
			return s.giveUp(b, before, first, err)
		}
		length = max(length, info.Key.rows)
	}
	sequences := make([]uint64, 0, length*n)
	for i, run := 0, first.run; i < n; i++ {
		end := len(sequences) + b.Info[before+i].Key.rows
		for ; len(sequences) < end; run++ {
			sequences = appendRunsOf(sequences, first.columns, run, 1)
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
	kept := n
	if len(lost) > 0 {
		kept = s.withoutLost(b, into, n, lost, sequences)
	}
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

// withoutLost removes the items of which a row is lost from the last n of a batch, whose rows are
// in into, and returns how many are left.
func (s *Sampler[C]) withoutLost(b *SampledBatch[C], into *Batch, n int, lost []int, sequences []uint64) (kept int) {
	before, length := b.Len()-n, len(sequences)/n
	gone := make([]bool, n)
	for _, i := range lost {
		gone[i/length] = true
	}
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
	return kept
}

// giveUp returns the items from first on to the limiter, after an error. The batch keeps those
// before.
func (s *Sampler[C]) giveUp(b *SampledBatch[C], before int, first sampledItems, err error) error {
	b.Info, s.pending = b.Info[:before], sampledItems{}
	s.returned += uint32(first.left()) //nolint:gosec // at most maxSampledItems
	return err
}

// drawAhead draws batches by calls until that fails, the sampler is closed, the ring is not mapped
// any more, or Next is to go on. It returns the last batch, or an error, or neither.
//
// While the rows of some batches are copied, the node draws the next ones. A call is for several
// batches, so that the two processes wake each other up less often, and the next call is with the
// node before it has answered: neither waits for the other then. Where the order of the items
// matters there is only one call at a time, because the node may answer concurrent ones in any
// order.
func (s *Sampler[C]) drawAhead() (*SampledBatch[C], error) {
	for len(s.taken) > 0 {
		<-s.taken
	}
	a := &s.ahead
	a.owed = s.options.prefetch * s.options.batch
	for {
		for len(s.taken) > 0 {
			<-s.taken
			a.owed += s.options.batch
		}
		s.requestDue()
		var b *SampledBatch[C]
		var err error
		switch {
		case s.pending.left() > 0 && s.impatient.Load():
			return nil, nil //nolint:nilnil // as said
		case s.pending.left() > 0:
			b, err = s.fill(s.ctx)
		case len(a.calls) > 0:
			err = s.responseAhead()
		default:
			select {
			case <-s.taken:
				a.owed += s.options.batch
			case <-s.ctx.Done():
				err = context.Cause(s.ctx)
			}
		}
		switch {
		case err != nil:
			a.cancel()
			return nil, err
		case b == nil:
		case s.leavesCalls():
			a.cancel()
			return b, nil
		default:
			a.owed -= s.options.batch
			s.fetched <- fetched[C]{batch: b} // there is room for all that Next has not taken
		}
	}
}

// drawOne draws a batch like drawAhead, in the goroutine of Next. It returns none if that would
// have to wait for the node for long.
func (s *Sampler[C]) drawOne(ctx context.Context) (b *SampledBatch[C], err error) {
	a := &s.ahead
	a.owed = s.options.prefetch * s.options.batch
	for b == nil && err == nil {
		s.requestDue()
		switch {
		case s.pending.left() > 0:
			b, err = s.fill(s.ctx)
		case len(a.calls) > 0 && isDoneWithin(ctx, a.calls[0].future.Done(), patience):
			err = s.responseAhead()
		default:
			return nil, nil //nolint:nilnil // as said
		}
	}
	if err != nil || s.leavesCalls() {
		a.cancel()
		return b, err
	}
	s.requestDue()
	return b, nil
}

// patience is how long Next waits for the node before another goroutine does it, which goes on when
// the context of Next ends.
const patience = 10 * time.Millisecond

// isDoneWithin waits for a channel to be closed, for at most a time, and reports whether it is.
func isDoneWithin(ctx context.Context, done <-chan struct{}, most time.Duration) bool {
	select {
	case <-done:
		return true
	default:
	}
	timer := time.NewTimer(most)
	defer timer.Stop()
	select {
	case <-done:
		return true
	case <-timer.C:
	case <-ctx.Done():
	}
	return false
}

// leavesCalls reports whether the sampler is to go on with a stream.
func (s *Sampler[C]) leavesCalls() bool { return !s.typed.client.Mapped() && !s.unary.Load() }

// requestDue requests what is due to be drawn ahead.
func (s *Sampler[C]) requestDue() {
	a := &s.ahead
	for n := s.due(); n > 0; n = s.due() {
		a.calls = append(a.calls, s.request(s.ctx, n, a.blocked))
	}
}

// responseAhead waits for the response to what was first requested ahead.
func (s *Sampler[C]) responseAhead() (err error) {
	a := &s.ahead
	call := a.calls[0]
	a.calls = slices.Delete(a.calls, 0, 1)
	if a.blocked, err = s.response(s.ctx, call); err != nil {
		for _, later := range a.calls { // they will be canceled
			s.returned += later.returned
		}
	}
	return err
}

// drawingAhead says how many items are to be drawn.
type drawingAhead struct {
	// owed is the number of items in the batches that may be drawn ahead, and are not drawn yet.
	owed int
	// calls are in flight. blocked means that the limiter blocked items of the last one that was
	// answered.
	calls   []*itemsCall
	blocked bool
}

// cancel ends the calls in flight.
func (a *drawingAhead) cancel() {
	for _, call := range a.calls {
		call.cancel()
	}
	a.calls, a.blocked = nil, false
}

// callsAhead is how many calls may be in flight where the order of the items does not matter.
const callsAhead = 2

// concurrent returns how many calls may be in flight.
func (s *Sampler[C]) concurrent() int {
	if kind := s.config.Sampler.Kind; kind == table.Uniform || kind == table.Prioritized {
		return callsAhead
	}
	return 1
}

// due returns how many items to request now, to draw ahead.
func (s *Sampler[C]) due() int {
	a := &s.ahead
	batch, missing, pending := s.options.batch, s.missing(), s.pending.left()
	left := a.owed - (batch - missing) - pending
	for _, call := range a.calls {
		left -= call.items
	}
	switch {
	case len(a.calls) == s.concurrent() || left <= 0:
		return 0
	case a.blocked:
		if pending > 0 || len(a.calls) > 0 {
			return 0
		}
		return missing // a batch does not wait for the one behind it
	}
	// One part is copied, and the others are with the node.
	part := max(1, s.options.prefetch/(1+s.concurrent())) * batch
	if left < part && (pending > 0 || len(a.calls) > 0) {
		return 0
	}
	// left%batch items are missing in a batch that was drawn: they were overwritten.
	return min(left, part+left%batch, maxSampledItems)
}
