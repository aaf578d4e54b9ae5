package replay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"sync"

	"connectrpc.com/connect/v2"

	replayv1 "github.com/raylink/raylink/gen/raylink/replay/v1"
	"github.com/raylink/raylink/gen/raylink/replay/v1/replayv1raylink"
	"github.com/raylink/raylink/services/replay/ring"
)

// errNoStreams means that the node, or the connection to it, has no streams of samples.
var errNoStreams = errors.New("no streams of samples")

// sampleStream receives batches of a sampler that has not mapped the ring. One goroutine calls its
// methods, but for those of the goroutines that send and receive.
type sampleStream[C any] struct {
	sampler *Sampler[C]
	ctx     context.Context //nolint:containedctx // that of the stream
	cancel  context.CancelFunc
	// call is the number by which the node finds what the stream waits for.
	call uint64
	// taken is how many batches Next has got.
	taken uint64
	// arrived has the batches that were received, and an error last. There is room for all of them.
	arrived chan fetched[C]

	// gathering is the batch being received. It belongs to the goroutine that receives.
	gathering gathering[C]

	mu sync.Mutex
	// batches is how many were requested in all, and done how many responses with rows are not used
	// any more.
	batches, done uint64
	wake          chan struct{}
	// received and items are how many whole batches, and items of the next, have arrived.
	received uint64
	items    int
}

// openStream opens a stream.
func (s *Sampler[C]) openStream() error {
	st := &sampleStream[C]{
		sampler: s, call: newCall(), arrived: make(chan fetched[C], s.options.prefetch+2), wake: make(chan struct{}, 1),
	}
	st.ctx, st.cancel = context.WithCancel(s.ctx)
	st.gathering = gathering[C]{sampler: s, shape: shapeOf(s.typed.client.layout)}
	st.gathering.columns = make([][]byte, len(st.gathering.shape.sizes))
	st.batches = uint64(max(1, s.options.prefetch))
	s.fetcher.Add(1)
	if err := s.typed.client.start(func(context.Context) {
		defer s.fetcher.Done()
		st.run()
	}); err != nil {
		s.fetcher.Done()
		st.cancel()
		return err
	}
	s.stream = st
	s.call.Store(st.call)
	s.blocked.Store(nil)
	return nil
}

// closeStream ends the stream, if there is one.
func (s *Sampler[C]) closeStream() {
	if s.stream != nil {
		s.stream.cancel()
		s.stream = nil
	}
}

// run receives batches until the stream ends.
func (st *sampleStream[C]) run() {
	err := st.receive()
	if cause := context.Cause(st.sampler.ctx); cause != nil {
		err = cause
	}
	st.cancel()
	st.arrived <- fetched[C]{err: ringError(err)}
}

func (st *sampleStream[C]) receive() error {
	s := st.sampler
	stream, err := s.typed.client.Handle().Draw(st.ctx)
	if err != nil {
		return err
	}
	// Over HTTP/2 a context that ends does not interrupt Receive.
	defer context.AfterFunc(st.ctx, func() { _ = stream.Close() })()
	defer func() { _ = stream.Close() }()
	var sender sync.WaitGroup
	sender.Go(func() { st.send(stream) })
	defer sender.Wait()
	defer st.cancel()
	for begun := false; ; begun = true {
		res, err := stream.Receive()
		if errors.Is(err, io.EOF) {
			err = connect.NewError(connect.CodeUnavailable, "the node has ended the stream")
		}
		if err != nil {
			if !begun && withoutStreams(err) {
				err = fmt.Errorf("%w: %w", errNoStreams, err)
			}
			return err
		}
		if err := st.handle(res); err != nil {
			return err
		}
	}
}

// withoutStreams reports whether a stream without a response failed because there can't be any: the
// node is older, or the connection is not one of HTTP/2, for which Connect has no code of its own.
func withoutStreams(err error) bool {
	code := connect.CodeOf(err)
	return code == connect.CodeUnimplemented || code == connect.CodeUnknown
}

// send sends requests until the stream ends.
func (st *sampleStream[C]) send(stream replayv1raylink.ReplayDrawClientStream) {
	options := st.sampler.options
	open := &replayv1.DrawOpen{
		Table: st.sampler.config.Name, Beta: options.beta, Caller: options.caller, Call: st.call,
		Items:  uint32(options.batch),                       //nolint:gosec // at most maxSampledItems
		Length: uint32(min(options.length, math.MaxUint32)), //nolint:gosec // not negative
	}
	for {
		st.mu.Lock()
		req := &replayv1.DrawRequest{Open: open, Batches: st.batches, Done: st.done}
		st.mu.Unlock()
		if stream.Send(req) != nil {
			return // the stream's error is that of Receive
		}
		open = nil
		select {
		case <-st.wake:
		case <-st.ctx.Done():
			return
		}
	}
}

// want requests batches, so that as many as the sampler draws ahead are on their way, and at least
// a number.
func (st *sampleStream[C]) want(least int) {
	st.mu.Lock()
	defer st.mu.Unlock()
	batches := st.taken + uint64(max(st.sampler.options.prefetch, least)) //nolint:gosec // not negative
	if batches <= st.batches {
		return
	}
	st.batches = batches
	select {
	case st.wake <- struct{}{}:
	default:
	}
}

// release notes that responses are not used any more: the oldest that were.
func (st *sampleStream[C]) release(responses uint64) {
	st.mu.Lock()
	defer st.mu.Unlock()
	st.done += responses
}

// owed reports whether batches were requested that Next has not got.
func (st *sampleStream[C]) owed() bool {
	st.mu.Lock()
	defer st.mu.Unlock()
	return st.batches > st.taken
}

// streams reports whether the next batch is one of a stream.
func (s *Sampler[C]) streams(ctx context.Context) (bool, error) {
	switch {
	case s.unary.Load() || s.unfinished != nil:
		return false, nil
	case s.stream != nil && s.stream.owed():
		return true, nil // they are drawn
	}
	client := s.typed.client
	if !client.Mapped() {
		r, err := client.current(ctx)
		if err != nil || r == nil {
			return err == nil, err
		}
	}
	s.closeStream()
	return false, nil
}

// nextStreamed returns the next batch of the stream. It opens one if there is none, or if the last
// one was lost while nothing was requested.
func (s *Sampler[C]) nextStreamed(ctx context.Context) (*SampledBatch[C], error) {
	for again := true; ; again = false {
		if st := s.stream; st != nil && !st.owed() {
			select {
			case <-st.arrived:
				s.closeStream()
			default:
			}
		}
		if s.stream == nil {
			if err := s.openStream(); err != nil {
				return nil, err
			}
		}
		st := s.stream
		if !s.typed.client.Mapped() {
			st.want(1)
		}
		select {
		case got := <-st.arrived:
			if got.err == nil {
				st.taken++
				if !s.typed.client.Mapped() {
					st.want(0)
				}
				return got.batch, nil
			}
			s.closeStream()
			if again && errors.Is(got.err, ring.ErrEnded) {
				continue // what was drawn has no rows any more
			}
			if errors.Is(got.err, errNoStreams) {
				s.unary.Store(true)
				return nil, got.err
			}
			return nil, st.lost(got.err)
		case <-ctx.Done():
			return nil, ctx.Err() //nolint:wrapcheck // Next adds the operation
		case <-s.ctx.Done():
			return nil, context.Cause(s.ctx)
		}
	}
}

// lost says how much was received on a stream that has failed.
func (st *sampleStream[C]) lost(cause error) error {
	st.mu.Lock()
	defer st.mu.Unlock()
	return fmt.Errorf("the stream of samples has ended after %d batches and %d of the next one's %d items, with %d batches requested: %w",
		st.received, st.items, st.sampler.options.batch, st.batches, cause)
}

// handle handles a response.
func (st *sampleStream[C]) handle(res *replayv1.DrawResponse) error {
	g, s := &st.gathering, st.sampler
	if g.ring == "" {
		if g.ring = res.GetRingId(); g.ring == "" {
			return fmt.Errorf("%w: %w: the first response has no ring", errResponse, ring.ErrBatch)
		}
		return nil
	}
	st.mu.Lock()
	batches, received := st.batches, st.received
	st.mu.Unlock()
	if res.GetBatch() != received || received >= batches {
		return fmt.Errorf("%w: %w: batch %d follows %d, and %d were requested", errResponse, ring.ErrBatch, res.GetBatch(), received, batches)
	}
	if blocked := res.GetBlocked(); blocked != nil {
		text := blocked.GetText()
		s.blocked.Store(&text)
		return nil
	}
	b, err := g.add(res)
	if err != nil {
		return fmt.Errorf("%w: %w", errResponse, err)
	}
	st.mu.Lock()
	st.items = g.items()
	if b != nil {
		st.received++
		st.items = 0
	}
	st.mu.Unlock()
	if b != nil {
		b.stream = st
		s.blocked.Store(nil)
		st.arrived <- fetched[C]{batch: b}
	}
	return nil
}

// gathering gathers the responses of a batch.
type gathering[C any] struct {
	sampler *Sampler[C]
	shape   rowShape
	ring    string
	columns [][]byte

	// batch is the current one, or nil before its first response. sequences are the numbers of its
	// rows, if those are in memory of its own, which has room for a number of items.
	batch     *SampledBatch[C]
	sequences []uint64
	room      int
	// announced are the items of the last response that had some, and lengths their numbers of
	// rows. Until the missing rows have arrived, those that have are in partial.
	announced *replayv1.SampledColumns
	lengths   []int
	missing   int
	partial   *Batch
}

// items returns how many items have arrived.
func (g *gathering[C]) items() int {
	if g.batch == nil {
		return 0
	}
	return g.batch.Len()
}

// add adds a response. It returns the batch once that is full.
func (g *gathering[C]) add(res *replayv1.DrawResponse) (*SampledBatch[C], error) {
	if g.batch == nil {
		if err := g.begin(); err != nil {
			return nil, err
		}
	}
	b := g.batch
	replaced := res.GetReplaced()
	if replaced > maxSampledItems {
		return nil, fmt.Errorf("%w: %d items were replaced", ring.ErrBatch, replaced)
	}
	b.Replaced += int(replaced)
	if res.GetDropped() {
		return nil, g.drop(res)
	}
	if err := g.announce(res.GetItems(), res.GetRows()); err != nil {
		return nil, err
	}
	if err := g.addRows(res); err != nil {
		return nil, err
	}
	if g.missing > 0 || b.Len() < g.sampler.options.batch {
		return nil, nil //nolint:nilnil // the batch is not full
	}
	return b, g.finish()
}

// begin begins a batch.
func (g *gathering[C]) begin() error {
	b, err := g.sampler.emptyBatch(g.ring)
	if err != nil {
		return err
	}
	b.responses, g.batch, g.room = 0, b, 0
	return nil
}

// drop removes the last item, of which rows are missing.
func (g *gathering[C]) drop(res *replayv1.DrawResponse) error {
	if g.missing == 0 || len(g.lengths) != 1 || res.GetRows() != 0 || len(res.GetData()) > 0 || len(res.GetItems().GetKeys()) > 0 {
		return fmt.Errorf("%w: there is no item to be dropped", ring.ErrBatch)
	}
	g.batch.Info = g.batch.Info[:len(g.batch.Info)-1]
	g.missing, g.partial = 0, nil
	return nil
}

// announce adds what a response says about items. It has all rows of theirs, or some of a single
// item.
func (g *gathering[C]) announce(c *replayv1.SampledColumns, has uint64) error {
	if err := checkSampledColumns(c); err != nil {
		return err
	}
	b, n := g.batch, len(c.GetKeys())/size64
	if n == 0 {
		return nil
	}
	switch left := g.sampler.options.batch - b.Len(); {
	case g.missing > 0:
		return fmt.Errorf("%w: %d items, and %d rows of those before are missing", ring.ErrBatch, n, g.missing)
	case n > left:
		return fmt.Errorf("%w: %d items instead of %d", ring.ErrBatch, n, left)
	}
	g.announced, g.lengths = c, g.lengths[:0]
	b.Info = slices.Grow(b.Info, n)
	for items := (sampledItems{columns: c}); items.left() > 0; {
		var info ItemInfo
		if err := g.sampler.nextItem(&info, &items, g.ring); err != nil {
			return err
		}
		rows := info.Key.rows
		g.lengths = append(g.lengths, rows)
		if g.missing += rows; n > 1 && uint64(g.missing) > has { //nolint:gosec // positive
			return fmt.Errorf("%w: %d items with %d rows", ring.ErrBatch, n, has)
		}
		b.Info = append(b.Info, info)
	}
	return nil
}

// addRows adds the rows of a response, and then the items that have all of theirs.
func (g *gathering[C]) addRows(res *replayv1.DrawResponse) error {
	n, data := res.GetRows(), res.GetData()
	switch {
	case n > uint64(g.missing) || n == 0 && g.missing > 0: //nolint:gosec // not negative
		return fmt.Errorf("%w: %d rows instead of %d", ring.ErrBatch, n, g.missing)
	case n > uint64(len(data)) || len(data) != g.shape.bytes(int(n)): //nolint:gosec // fewer than bytes
		return fmt.Errorf("%w: %d rows with %d bytes", ring.ErrBatch, n, len(data))
	case n == 0:
		return nil
	}
	b, rows := g.batch, int(n) //nolint:gosec // fewer than bytes
	b.responses++
	g.shape.split(data, rows, 0, rows, g.columns)
	whole := rows == g.missing && (g.partial == nil || g.partial.Rows() == 0)
	if whole {
		g.missing = 0
		if g.shared() {
			return g.share(n)
		}
		return g.place(g.columns)
	}
	if g.partial == nil {
		partial, err := g.sampler.typed.client.NewBatch(0)
		if err != nil {
			return err
		}
		g.partial = partial
	}
	some, err := ring.BatchOf(g.sampler.typed.client.layout, n, g.columns, nil)
	if err != nil {
		return err
	}
	if err := g.partial.AppendRows(some); err != nil {
		return err
	}
	if g.missing -= rows; g.missing > 0 {
		return nil
	}
	for i := range g.columns {
		g.columns[i] = g.partial.Bytes(i)
	}
	err = g.place(g.columns)
	g.partial = nil
	return err
}

// shared reports whether the batch can have the memory of the response with the announced items:
// they are all of the batch, and have the same number of rows.
func (g *gathering[C]) shared() bool {
	b, options := g.batch, g.sampler.options
	length := max(options.length, g.lengths[0])
	return len(g.lengths) == options.batch && b.Len() == options.batch && slices.Max(g.lengths) == length && slices.Min(g.lengths) == length
}

// share makes the columns those of the batch, without a copy if they are aligned.
func (g *gathering[C]) share(rows uint64) error {
	b := g.batch
	view, err := ring.BatchOf(g.sampler.typed.client.layout, rows, g.columns, g.announcedNumbers())
	b.view, b.Length = view, g.lengths[0]
	return err
}

// announcedNumbers returns the sequence numbers of the rows of the announced items.
func (g *gathering[C]) announcedNumbers() []uint64 {
	rows := 0
	for _, n := range g.lengths {
		rows += n
	}
	return appendRunsOf(make([]uint64, 0, rows), g.announced, 0, len(g.announced.GetFirsts())/size64)
}

// place copies the announced items, whose rows are back to back in columns, to the batch's memory.
func (g *gathering[C]) place(columns [][]byte) error {
	b, n := g.batch, len(g.lengths)
	before := b.Len() - n
	length := max(b.Length, g.sampler.options.length, slices.Max(g.lengths))
	if err := g.reserve(before, b.Len(), length); err != nil {
		return err
	}
	numbers, from := g.announcedNumbers(), 0
	for i, rows := range g.lengths {
		to := (before + i) * length
		copy(g.sequences[to:], numbers[from:from+rows])
		for c, size := range g.shape.sizes {
			copy(b.rows.Bytes(c)[to*size:], columns[c][from*size:(from+rows)*size])
		}
		from += rows
	}
	return nil
}

// reserve makes room for items of a length in the batch's memory, which has some items.
func (g *gathering[C]) reserve(has, items, length int) error {
	b := g.batch
	if items <= g.room && length == b.Length {
		return nil
	}
	room := min(g.sampler.options.batch, max(items, 2*g.room))
	into := b.rows
	if has > 0 {
		longer, err := g.sampler.typed.client.NewBatch(0)
		if err != nil {
			return err
		}
		into = longer
	}
	if err := into.Resize(0); err != nil {
		return err
	}
	if err := into.Resize(room * length); err != nil {
		return err
	}
	sequences := make([]uint64, room*length)
	for i := range sequences {
		sequences[i] = ring.NoRow
	}
	for i := range has {
		copy(sequences[i*length:], g.sequences[i*b.Length:(i+1)*b.Length])
		for c, size := range g.shape.sizes {
			copy(into.Bytes(c)[i*length*size:], b.rows.Bytes(c)[i*b.Length*size:(i+1)*b.Length*size])
		}
	}
	b.rows, b.Length, g.sequences, g.room = into, length, sequences, room
	return nil
}

// finish returns the batch to the sampler.
func (g *gathering[C]) finish() error {
	b := g.batch
	g.batch = nil
	if b.view == nil {
		if err := b.rows.Resize(len(b.Info) * b.Length); err != nil {
			return err
		}
		b.rows.SetSequences(g.sequences[:len(b.Info)*b.Length])
	}
	return b.finish(g.sampler.typed)
}
