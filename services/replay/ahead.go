package replay

import "context"

// drawAhead draws batches by calls until that fails, the sampler is closed, or the ring is not
// mapped any more. It returns the last batch, or an error.
//
// While the rows of some batches are copied, the node draws the next ones. A call is for half of
// what is drawn ahead, so that the two processes wake each other up once for several batches.
// There is only one call at a time, because the node may answer concurrent ones in any order, and
// a queue has one.
func (s *Sampler[C]) drawAhead() (*SampledBatch[C], error) {
	ctx, cancel := context.WithCancel(s.ctx)
	defer cancel()
	for len(s.taken) > 0 {
		<-s.taken
	}
	a := drawingAhead[C]{sampler: s, owed: s.options.prefetch * s.options.batch}
	for {
		for len(s.taken) > 0 {
			a.take(<-s.taken)
		}
		if n := a.due(); n > 0 {
			a.call = s.request(ctx, n, a.blocked)
		}
		var b *SampledBatch[C]
		var err error
		switch {
		case s.pending.left() > 0:
			b, err = s.fill(ctx)
		case a.call != nil:
			a.blocked, err = s.response(ctx, a.call)
			a.call = nil
		default:
			select {
			case taken := <-s.taken:
				a.take(taken)
			case <-ctx.Done():
				err = context.Cause(ctx)
			}
		}
		switch {
		case err != nil:
			return nil, err
		case b == nil:
		case !s.typed.client.Mapped() && !s.unary.Load():
			return b, nil
		default:
			a.owed -= s.options.batch
			s.fetched <- fetched[C]{batch: b} // there is room for all that Next has not taken
		}
	}
}

// drawingAhead says how many items are to be drawn.
type drawingAhead[C any] struct {
	sampler *Sampler[C]
	// owed is the number of items in the batches that may be drawn ahead, and are not drawn yet.
	owed int
	// call is the current one. blocked means that the limiter blocked items of the last one.
	call    *itemsCall
	blocked bool
}

// take notes that Next has taken a batch.
func (a *drawingAhead[C]) take(struct{}) { a.owed += a.sampler.options.batch }

// due returns how many items to request now.
func (a *drawingAhead[C]) due() int {
	s := a.sampler
	batch, missing, pending := s.options.batch, s.missing(), s.pending.left()
	left := a.owed - (batch - missing) - pending
	switch {
	case a.call != nil || left <= 0:
		return 0
	case a.blocked:
		if pending > 0 {
			return 0
		}
		return missing // a batch does not wait for the one behind it
	}
	half := max(1, s.options.prefetch/2) * batch
	if left < half && pending > 0 {
		return 0
	}
	// left%batch items are missing in a batch that was drawn: they were overwritten.
	return min(left, half+left%batch, maxSampledItems)
}
