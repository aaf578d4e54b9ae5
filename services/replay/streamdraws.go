package replay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"sync"

	"google.golang.org/protobuf/proto"

	replayv1 "github.com/raylink/raylink/gen/raylink/replay/v1"
	"github.com/raylink/raylink/gen/raylink/replay/v1/replayv1raylink"
	"github.com/raylink/raylink/services/replay/internal/table"
	"github.com/raylink/raylink/services/replay/ring"
)

const (
	// drawnBytes is the maximum size of the rows of one response of Draw, if they are of several
	// items. A batch of at most this size is one response, which the sampler need not copy.
	drawnBytes = 1 << 20
	// maxSpare is the size of the buffers that a stream keeps until the sampler is done with them.
	maxSpare = 8 << 20
	// madeAhead is how many responses are made while one is sent: drawing and copying the rows of a
	// batch takes as long as the kernel takes to send it.
	madeAhead = 2
)

// errDrawn ends a stream that the sampler has ended.
var errDrawn = errors.New("the sampler has ended the stream")

// draws are the streams of samples of a node.
type draws struct {
	mu     sync.Mutex
	ends   map[*drawing]context.CancelCauseFunc
	closed error
}

// close ends all streams.
func (d *draws) close(cause error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.closed = cause
	for _, end := range d.ends {
		end(cause)
	}
}

func (d *draws) enter(stream *drawing, end context.CancelCauseFunc) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed != nil {
		return d.closed
	}
	if d.ends == nil {
		d.ends = make(map[*drawing]context.CancelCauseFunc)
	}
	d.ends[stream] = end
	return nil
}

func (d *draws) leave(stream *drawing) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.ends, stream)
}

// drawing is a stream of samples.
type drawing struct {
	node   *node
	open   *replayv1.DrawOpen
	stream replayv1raylink.ReplayDrawServerStream
	head   *ring.ReadHead
	shape  rowShape
	// responses are those that were made, and not sent yet.
	responses chan *replayv1.DrawResponse
	// batch is the number of the current one. The others are memory of the goroutine that draws.
	batch     uint64
	samples   []table.Sample
	sequences []uint64
	columns   [][]byte

	mu sync.Mutex
	// batches is how many the sampler wants in all, and sent how many responses have rows.
	batches, sent uint64
	// more has an element if batches has changed.
	more chan struct{}
	// used has the memory of the last responses, with size bytes, and spare that of responses that
	// the sampler has done with.
	used  []usedBuffer
	size  int
	spare [][]byte
}

// usedBuffer is the memory of a response, which is the n-th, from 1.
type usedBuffer struct {
	n    uint64
	data []byte
}

// Draw sends batches of items of a table, with their rows.
func (n *node) Draw(ctx context.Context, stream replayv1raylink.ReplayDrawServerStream) error {
	first, err := stream.Receive()
	if err != nil {
		return err
	}
	d := &drawing{
		node: n, open: first.GetOpen(), stream: stream, shape: shapeOf(n.ring.Layout()), more: make(chan struct{}, 1),
		responses: make(chan *replayv1.DrawResponse, madeAhead),
	}
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	if err = d.check(ctx); err == nil {
		err = d.want(first)
	}
	if err == nil {
		err = n.draws.enter(d, end)
	}
	if err != nil {
		return connectError(fmt.Errorf("stream samples: %w", err))
	}
	defer n.draws.leave(d)
	go func() { end(d.receive()) }() // ends with the call
	err = d.run(ctx, end)
	switch cause := context.Cause(ctx); {
	case errors.Is(cause, errDrawn):
		return nil
	case cause != nil:
		err = cause
	}
	return connectError(fmt.Errorf("stream samples: %w", err))
}

// check checks the first message.
func (d *drawing) check(ctx context.Context) (err error) {
	open := d.open
	if open == nil {
		return fmt.Errorf("%w: the first message opens the stream", ErrArgument)
	}
	if _, err = d.node.table(ctx, open.GetTable()); err != nil {
		return err
	}
	switch items, beta := open.GetItems(), open.GetBeta(); {
	case items < 1 || items > maxSampledItems:
		return fmt.Errorf("sample batches of %d items of table %q: %w: 1 to %d are possible", items, open.GetTable(), ErrArgument, maxSampledItems)
	case !(beta >= 0) || math.IsInf(beta, 0):
		return fmt.Errorf("sample with weights of exponent %g: %w: it must be finite and not negative", beta, ErrArgument)
	}
	d.columns = make([][]byte, len(d.shape.sizes))
	d.head, err = d.node.ring.Reader()
	return err
}

// receive handles requests until the stream ends.
func (d *drawing) receive() error {
	for {
		req, err := d.stream.Receive()
		if errors.Is(err, io.EOF) {
			return errDrawn
		}
		if err == nil && req.GetOpen() != nil {
			err = fmt.Errorf("%w: the stream is open", ErrArgument)
		}
		if err == nil {
			err = d.want(req)
		}
		if err != nil {
			return err
		}
	}
}

// want notes what the sampler wants, and with what it is done.
func (d *drawing) want(req *replayv1.DrawRequest) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case req.GetBatches() < d.batches:
		return fmt.Errorf("%w: %d batches are wanted, after %d were", ErrArgument, req.GetBatches(), d.batches)
	case req.GetDone() > d.sent:
		return fmt.Errorf("%w: the sampler is done with %d responses, and %d were sent", ErrArgument, req.GetDone(), d.sent)
	}
	d.batches = req.GetBatches()
	for len(d.used) > 0 && d.used[0].n <= req.GetDone() {
		d.spare = append(d.spare, d.used[0].data)
		d.used = d.used[1:]
	}
	select {
	case d.more <- struct{}{}:
	default:
	}
	return nil
}

// buffer returns memory of a size, whose content is arbitrary. Responses have the numbers from 1.
func (d *drawing) buffer(size int) []byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	for n := len(d.spare); n > 0; n = len(d.spare) {
		data := d.spare[n-1]
		d.spare = d.spare[:n-1]
		if cap(data) >= size {
			return data[:size]
		}
		d.size -= cap(data)
	}
	data := make([]byte, aligned8(size))[:size]
	d.size += cap(data)
	return data
}

// sending counts a response, and keeps its memory until the sampler is done with it.
func (d *drawing) sending(data []byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.sent++
	if d.size > maxSpare {
		d.size -= cap(data)
		return
	}
	d.used = append(d.used, usedBuffer{d.sent, data})
}

// run makes and sends batches until the stream ends.
func (d *drawing) run(ctx context.Context, end context.CancelCauseFunc) error {
	var sender sync.WaitGroup
	sender.Go(func() { d.sendAll(ctx, end) })
	defer sender.Wait()
	defer close(d.responses)
	return d.serve(ctx)
}

// sendAll sends the responses until there are no more, and ends the stream if one can't be sent.
// Those that were made before an error are sent too, but none after the stream has ended.
func (d *drawing) sendAll(ctx context.Context, end context.CancelCauseFunc) {
	for res := range d.responses {
		if ctx.Err() != nil {
			continue
		}
		if err := d.stream.Send(res); err != nil {
			end(err)
		}
	}
}

// enqueue lets a response be sent after those before.
func (d *drawing) enqueue(ctx context.Context, res *replayv1.DrawResponse) error {
	select {
	case d.responses <- res:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// serve makes batches until the stream ends.
func (d *drawing) serve(ctx context.Context) error {
	if err := d.enqueue(ctx, &replayv1.DrawResponse{RingId: d.node.ring.ID().String()}); err != nil {
		return err
	}
	for ; ; d.batch++ {
		for !d.wanted() {
			select {
			case <-d.more:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
		for left := int(d.open.GetItems()); left > 0; {
			samples, err := d.draw(ctx, left)
			if err != nil {
				return err
			}
			kept, err := d.send(ctx, samples)
			if err != nil {
				return err
			}
			left -= kept
		}
	}
}

// wanted reports whether the sampler wants another batch.
func (d *drawing) wanted() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.batch < d.batches
}

// draw draws items. It waits until the limiter allows all of them.
func (d *drawing) draw(ctx context.Context, n int) ([]table.Sample, error) {
	if err := ctx.Err(); err != nil {
		return nil, err //nolint:wrapcheck // Draw adds the operation
	}
	t, err := d.node.table(ctx, d.open.GetTable())
	if err != nil {
		return nil, err
	}
	options := table.SampleOptions{Caller: d.open.GetCaller(), Beta: d.open.GetBeta()}
	if len(d.samples) < n {
		d.samples = make([]table.Sample, n)
	}
	samples := d.samples[:n]
	done, err := t.TrySample(samples, options)
	if blocked, _ := blockedOf(err); blocked != nil {
		if err := d.enqueue(ctx, &replayv1.DrawResponse{Batch: d.batch, Blocked: blocked}); err != nil {
			return nil, err
		}
		_, err = t.Sample(table.WithCall(ctx, d.open.GetCall()), samples[done:], options)
	}
	if err != nil {
		return nil, err
	}
	if most := d.open.GetLength(); most > 0 {
		for i := range samples {
			if rows := rowsOfSample(&samples[i]); rows > uint64(most) {
				t.Return(n)
				return nil, longItem(rows, uint64(most))
			}
		}
	}
	return samples, nil
}

// longItem is the error of an item that has more rows than those of a batch have.
func longItem(rows, most uint64) error {
	return fmt.Errorf("%w: it has %d rows, and the sampler's batches have %d for each: create it with replay.Length(%d)", ErrItem, rows, most, rows)
}

func rowsOfSample(s *table.Sample) uint64 {
	n := uint64(s.Run.Length)
	for _, r := range s.More {
		n += uint64(r.Length)
	}
	return n
}

// send sends samples with their rows, but for those of which a row was overwritten. It returns how
// many they are.
func (d *drawing) send(ctx context.Context, samples []table.Sample) (kept int, err error) {
	for len(samples) > 0 {
		rows, n := rowsOfSample(&samples[0]), 1
		most := uint64(max(1, drawnBytes/d.shape.row))
		for n < len(samples) && rows+rowsOfSample(&samples[n]) <= most {
			rows += rowsOfSample(&samples[n])
			n++
		}
		sent, err := d.sendPart(ctx, samples[:n], rows)
		if err != nil {
			return 0, err
		}
		if lost := n - sent; lost > 0 {
			d.node.giveBack(d.open.GetTable(), lost)
		}
		kept += sent
		samples = samples[n:]
	}
	return kept, nil
}

// giveBack returns items to the limiter.
func (n *node) giveBack(name string, items int) {
	if t, err := n.tables.find(name); err == nil {
		t.Return(items)
	}
}

// sendPart sends samples that have a number of rows: in one response, unless there is one sample
// with more rows than a response has.
func (d *drawing) sendPart(ctx context.Context, samples []table.Sample, rows uint64) (kept int, err error) {
	most := uint64(max(1, maxChunk/d.shape.row))
	if rows > most {
		return d.sendLong(ctx, &samples[0], int(most)) //nolint:gosec // at most maxChunk
	}
	sequences := d.sequences[:0]
	for i := range samples {
		sequences = appendSample(sequences, &samples[i])
	}
	d.sequences = sequences
	data, lost, err := d.copyRows(ctx, sequences)
	if err != nil {
		return 0, err
	}
	res := &replayv1.DrawResponse{Batch: d.batch, Data: data, Rows: rows}
	whole := samples
	if len(lost) > 0 {
		whole, res.Data = d.withoutLost(samples, data, lost)
		res.Replaced = uint64(len(samples) - len(whole)) //nolint:gosec // positive
		res.Rows = 0
		for i := range whole {
			res.Rows += rowsOfSample(&whole[i])
		}
	}
	if len(whole) == 0 {
		return 0, d.enqueue(ctx, &replayv1.DrawResponse{Batch: d.batch, Replaced: res.GetReplaced()})
	}
	res.Items = sampledColumnsOf(whole)
	return len(whole), d.respond(ctx, res)
}

// respond lets a response with rows be sent.
func (d *drawing) respond(ctx context.Context, res *replayv1.DrawResponse) error {
	pad(res)
	d.sending(res.GetData())
	return d.enqueue(ctx, res)
}

// pad lets the data begin at a multiple of 8 bytes of the encoded message, if it is encoded last.
func pad(res *replayv1.DrawResponse) {
	data := res.GetData()
	res.Data = nil
	begin := proto.Size(res) + 1
	for n := len(data); n > 0; n >>= 7 {
		begin++
	}
	res.Data = data
	if begin%8 != 0 {
		n := (8 - (begin+2)%8) % 8
		if n == 0 {
			n = 8
		}
		res.Padding = make([]byte, n)
	}
}

func appendSample(sequences []uint64, s *table.Sample) []uint64 {
	sequences = appendRun(sequences, s.Run.First, s.Run.Length)
	for _, r := range s.More {
		sequences = appendRun(sequences, r.First, r.Length)
	}
	return sequences
}

// copyRows copies rows of the ring, and returns the indexes of those that were overwritten.
func (d *drawing) copyRows(ctx context.Context, sequences []uint64) (data []byte, lost []int, err error) {
	n := len(sequences)
	data = d.buffer(d.shape.bytes(n))
	d.shape.split(data, n, 0, n, d.columns)
	into, err := ring.BatchOf(d.node.ring.Layout(), uint64(n), d.columns, nil)
	if err != nil {
		return nil, nil, err
	}
	lost, err = d.head.At(ctx, sequences, into)
	return data, lost, err
}

// withoutLost returns the samples that have all of their rows, with these rows.
func (d *drawing) withoutLost(samples []table.Sample, data []byte, lost []int) ([]table.Sample, []byte) {
	type stretch struct{ from, rows int }
	kept := make([]table.Sample, 0, len(samples))
	var rows []stretch
	from, left := 0, 0
	for i := range samples {
		n := int(rowsOfSample(&samples[i])) //nolint:gosec // it was copied
		gone := false
		for len(lost) > 0 && lost[0] < from+n {
			gone, lost = true, lost[1:]
		}
		if !gone {
			kept, rows, left = append(kept, samples[i]), append(rows, stretch{from, n}), left+n
		}
		from += n
	}
	rest, columns := d.buffer(d.shape.bytes(left)), make([][]byte, len(d.shape.sizes))
	d.shape.split(data, from, 0, from, d.columns)
	d.shape.split(rest, left, 0, left, columns)
	for c, size := range d.shape.sizes {
		to := columns[c]
		for _, s := range rows {
			to = to[copy(to, d.columns[c][s.from*size:(s.from+s.rows)*size]):]
		}
	}
	d.mu.Lock()
	d.spare = append(d.spare, data)
	d.mu.Unlock()
	return kept, rest
}

// sendLong sends a sample in several responses. If a row is overwritten meanwhile, the last one
// drops the sample.
func (d *drawing) sendLong(ctx context.Context, sample *table.Sample, most int) (kept int, err error) {
	items := sampledColumnsOf([]table.Sample{*sample})
	sequences := appendSample(nil, sample)
	for len(sequences) > 0 {
		n := min(most, len(sequences))
		data, lost, err := d.copyRows(ctx, sequences[:n])
		if err != nil {
			return 0, err
		}
		res := &replayv1.DrawResponse{Batch: d.batch, Items: items, Data: data, Rows: uint64(n)} //nolint:gosec // positive
		if len(lost) > 0 {
			res = &replayv1.DrawResponse{Batch: d.batch, Replaced: 1, Dropped: items == nil}
			return 0, d.enqueue(ctx, res)
		}
		if err := d.respond(ctx, res); err != nil {
			return 0, err
		}
		items, sequences = nil, sequences[n:]
	}
	return 1, nil
}
