package replay

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync"
	"sync/atomic"
	"time"

	replayv1 "github.com/raylink/raylink/gen/raylink/replay/v1"
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
	ahead      drawingAhead
	// last is the batch that Next returned; free has those that may be used again.
	last *SampledBatch[C]
	free chan *SampledBatch[C]
	// fetching means that a goroutine draws: ahead, or one batch for which the limiter waits. It
	// sends to fetched, an error last. taken has an element for each batch that Next has got since.
	fetching bool
	fetched  chan fetched[C]
	taken    chan struct{}
	fetcher  sync.WaitGroup
	// returnedAt is when Next returned, and hurried how often it was then called at once, and had
	// to wait. impatient is set if the goroutine that draws should leave the copying to Next.
	returnedAt time.Time
	hurried    int
	impatient  atomic.Bool

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
	s.pace(begin)
	b, err := s.next(ctx)
	s.returnedAt = time.Now()
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

const (
	// switchTime is about how long it takes until a goroutine that was waiting runs on a thread
	// that was sleeping: what the caller does in a shorter time is not worth a switch.
	switchTime = 50 * time.Microsecond
	// impatientAfter is how often Next is called at once before it copies rows itself.
	impatientAfter = 8
)

// pace notes that Next was called. If it is always called at once, and drawing is what takes the
// time, then Next copies rows itself: a goroutine that copies them meanwhile would save nothing,
// but cost a switch, and another one to hand over the batch.
func (s *Sampler[C]) pace(now time.Time) {
	if len(s.fetched) > 0 || now.Sub(s.returnedAt) >= switchTime {
		s.hurried = 0
	} else {
		s.hurried++
	}
	s.impatient.Store(s.hurried >= impatientAfter)
}

// next returns the next batch, from a stream or drawn by calls.
func (s *Sampler[C]) next(ctx context.Context) (*SampledBatch[C], error) {
	for {
		if !s.fetching {
			if b, err := s.nextHere(ctx); b != nil || err != nil {
				return b, err
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
			if got.batch != nil || got.err != nil {
				return got.batch, got.err
			}
		case <-ctx.Done():
			return nil, ctx.Err() //nolint:wrapcheck // Next adds the operation
		case <-s.ctx.Done():
			return nil, context.Cause(s.ctx)
		}
	}
}

// nextHere returns the next batch without another goroutine that draws. It returns none if there
// should be one.
func (s *Sampler[C]) nextHere(ctx context.Context) (*SampledBatch[C], error) {
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
	switch {
	case s.options.prefetch == 0:
		return s.draw(ctx, false)
	case s.impatient.Load():
		return s.drawOne(ctx)
	}
	return nil, nil //nolint:nilnil // as said
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
