package replay

import (
	"context"
	"crypto/rand"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	replayv1 "github.com/raylink/raylink/gen/raylink/replay/v1"
	"github.com/raylink/raylink/services/replay/internal/table"
	"github.com/raylink/raylink/services/replay/ring"
)

const (
	// chunkBytes is the size of the rows that a writer gathers for a message.
	chunkBytes = 128 << 10
	// linger is how long a writer's rows and items wait for others before they are sent.
	linger = time.Millisecond
	// idleStream is how long a stream stays open with nothing to send or to confirm.
	idleStream = 10 * time.Second
)

// outbox has the rows and items of a writer that has not mapped the ring, until the node has
// confirmed them. A goroutine sends them on a stream. It ends when the stream is lost, or has been
// idle; the next call begins another.
//
// One goroutine calls the methods of writers. Rows have the numbers of their writer: how many it
// has written before.
type outbox struct {
	client  *Client
	options writerOptions
	shape   rowShape
	// chunk is how many rows a message has, at most together.
	chunk, together int
	// key stands for the ring in the writer's history.
	key string

	mu sync.Mutex
	// changed is closed when something has happened that a call may wait for.
	changed chan struct{}
	// wake has an element if the goroutine that sends has something to do.
	wake chan struct{}

	// id is that of the writer at the node, and ring that of its rows.
	id, ring string
	// running means that there is a stream, and opened that the node has answered.
	running, opened bool
	// dead is why the node can't go on with this writer, if so. Then a new outbox is needed.
	dead error
	// failure is why the last stream was lost, until a call has returned it. needed means that a
	// call waited for that stream.
	failure error
	needed  bool
	// seen is the serial of the last response.
	seen uint64

	// next is how many rows sealed chunks have had, and confirmed how many rows were.
	next, confirmed uint64
	// bytes is the size of the rows of sealed chunks that were not.
	bytes int
	// chunks have the rows that were not confirmed; sent of them are on their way, which are the
	// rows before sentRows.
	chunks   []*outChunk
	sent     int
	sentRows uint64
	// tail is the last chunk if the writer still adds rows to it, otherwise nil. Only the writer's
	// goroutine sets it to a chunk. state guards what it has: see filling.
	tail  *outChunk
	state atomic.Uint32
	// since is when the first row or item was added that is not sent; zero if there is none.
	since time.Time
	// urgent means that a call waits for what is not sent.
	urgent bool
	// tables have the items that were not confirmed.
	tables map[string]*outItems
	// room is what rows wait for at the node, or nil.
	room *ring.NoRoomError
	// recent has the sequence numbers of the last confirmed rows, among them those of the last
	// write.
	recent history
	// spare are confirmed chunks, whose memory is used again.
	spare []*outChunk

	// The last write had lastRows rows from number lastFrom on; last is memory for their sequence
	// numbers. Only the writer's goroutine uses them.
	lastFrom uint64
	lastRows int
	last     []uint64
}

// Bits of an outbox's state. While it is 0, the stream goes on as far as is known, and the writer
// adds rows to the tail without mu. It sets filling for as long as it uses the tail. Anything else
// that uses the tail holds mu, and has set taken while filling was not set. So the writer locks mu
// before it adds further rows, and wakes the goroutine that sends if it finds taken set after it
// has filled rows.
const (
	filling uint32 = 1 << iota
	taken
)

// outChunk has rows of one message.
type outChunk struct {
	first    uint64
	rows     int
	together []uint32
	// data has room for a number of rows, until the chunk is sealed. limit is how many of them the
	// window allowed when it was last looked at.
	data        []byte
	room, limit int
	sealed      bool
	// again means that it was sent on a stream that was lost, which may still use data.
	again bool
	// written has the sequence numbers of rows that were written by other calls.
	written []*replayv1.Run
}

func (c *outChunk) end() uint64 { return c.first + uint64(c.rows) } //nolint:gosec // not negative

// outItems are the items of a table that were not confirmed.
type outItems struct {
	config table.Config
	items  []outItem
	// sent of them are on their way, and resolved of them have the sequence numbers of their rows.
	sent, resolved int
	// confirmed is how many were.
	confirmed uint64
	// blocked is what the limiter waits for, if it does.
	blocked string
}

type outItem struct {
	message *replayv1.FeedItem
	key     *PendingKey
	// runs has the rows' sequence numbers once they are confirmed.
	runs []*replayv1.Run
}

// rows returns the number of rows.
func (it *outItem) rows() int {
	return int(it.message.GetLength()) + rowsIn(it.message.GetRuns())
}

// end returns the writer's number of the row after the last of the item.
func (it *outItem) end() uint64 { return it.message.GetFirst() + uint64(it.message.GetLength()) }

func newOutbox(c *Client, options writerOptions) *outbox {
	o := &outbox{
		client: c, options: options, shape: shapeOf(c.layout), together: c.layout.MaxTogether(), key: "stream " + rand.Text(),
		changed: make(chan struct{}), wake: make(chan struct{}, 1), tables: make(map[string]*outItems),
	}
	o.chunk = max(1, min(o.together, min(chunkBytes, options.window/4)/max(1, o.shape.row)))
	if o.chunk > 8 {
		o.chunk &^= 7 // so that columns of a full chunk lie back to back
	}
	o.recent.most = options.history + o.together
	o.state.Store(taken) // there is no tail
	return o
}

// notify wakes calls that wait. It is called with mu.
func (o *outbox) notify() {
	close(o.changed)
	o.changed = make(chan struct{})
}

// poke wakes the goroutine that sends.
func (o *outbox) poke() {
	select {
	case o.wake <- struct{}{}:
	default:
	}
}

// wait waits until done returns true, which is called with mu, or until the context ends, or rows
// or items were lost. It makes sure of a stream. It returns with mu locked if the error is nil.
func (o *outbox) wait(ctx context.Context, done func() bool) error {
	var begin time.Time
	o.mu.Lock()
	for {
		if err := o.takeFailure(); err != nil {
			o.mu.Unlock()
			return err
		}
		if err := o.dead; err != nil {
			o.mu.Unlock()
			return err
		}
		if !o.running {
			if err := o.client.start(o.run); err != nil {
				o.mu.Unlock()
				return err
			}
			o.running = true
		}
		if o.opened && done() {
			return nil
		}
		if begin.IsZero() {
			begin = time.Now()
		}
		changed := o.changed
		o.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return o.interrupted(ctx.Err(), begin)
		}
		o.mu.Lock()
	}
}

// takeFailure returns why rows or items were not confirmed, once. If the node can't go on with
// them, it drops them. It is called by the writer's goroutine, with mu.
func (o *outbox) takeFailure() error {
	err := o.failure
	if err == nil {
		return nil
	}
	o.failure = nil
	o.settle()
	switch {
	case o.pending():
		err = o.unconfirmed(o.dead == nil, err)
	case !o.needed:
		err = nil
	}
	if o.dead != nil {
		o.drop()
	}
	return err
}

// pending reports whether rows of sealed chunks or items were not confirmed. It is called with mu.
func (o *outbox) pending() bool {
	if o.confirmed < o.next {
		return true
	}
	for _, q := range o.tables {
		if len(q.items) > 0 {
			return true
		}
	}
	return false
}

// unconfirmed returns an error that says what was not confirmed. It is called by the writer's
// goroutine, with mu.
func (o *outbox) unconfirmed(kept bool, cause error) *UnconfirmedError {
	o.settle()
	e := &UnconfirmedError{Rows: o.next - o.confirmed, Confirmed: o.confirmed, Kept: kept, Cause: cause}
	for name, q := range o.tables {
		for _, it := range q.items {
			e.Keys = append(e.Keys, it.key)
		}
		if len(q.items) > 0 {
			e.Table = name
			if e.Items > 0 {
				e.Table = ""
			}
			e.Items += len(q.items)
		}
	}
	if e.Keys == nil {
		e.Keys = []*PendingKey{}
	}
	return e
}

// interrupted returns the error of a call whose context ended.
func (o *outbox) interrupted(cause error, begin time.Time) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	waited := time.Since(begin)
	if o.room != nil {
		room := *o.room
		room.Cause = cause
		return fmt.Errorf("append to ring: %w", o.unconfirmed(true, &room))
	}
	reason := "the node's response"
	for _, q := range o.tables {
		if q.blocked != "" {
			reason = "the limiter: " + q.blocked
		}
	}
	e := o.unconfirmed(true, nil)
	e.Cause = fmt.Errorf("%w: waited %v with %d unconfirmed items for %s: %w", ErrBlocked, waited.Round(time.Millisecond), e.Items, reason, cause)
	return e
}

// extend is reserve in the usual case: the tail has room for n more rows, and nothing is to be
// looked at. It takes no lock. Otherwise it returns false.
func (o *outbox) extend(n int, columns [][]byte) bool {
	if !o.state.CompareAndSwap(0, filling) {
		return false
	}
	c := o.tail
	if c.rows+n > c.limit {
		o.release()
		return false
	}
	o.shape.split(c.data, c.room, c.rows, n, columns)
	return true
}

// release ends the writer's use of the tail. It reports whether something else wants it.
func (o *outbox) release() bool {
	wanted := o.state.And(^filling)&taken != 0
	if wanted {
		o.poke()
	}
	return wanted
}

// reserve returns the columns of n rows, which the writer fills, at most as many as are written
// together. It waits until there is room in the window. commit or abandon must follow.
func (o *outbox) reserve(ctx context.Context, n int, columns [][]byte) error {
	size := n * o.shape.row
	if err := o.wait(ctx, func() bool { return o.fits(size) }); err != nil {
		return err
	}
	defer o.mu.Unlock()
	if c := o.tail; c != nil && (c.rows+n > c.room || o.state.Load()&taken != 0) {
		o.settle()
	}
	if o.tail == nil {
		room := max(n, o.chunk)
		o.tail = o.newChunk(room)
		o.tail.first, o.tail.room = o.next, room
		o.chunks = append(o.chunks, o.tail)
		o.touch()
	}
	c := o.tail
	c.limit = min(c.room, max(c.rows+n, (o.options.window-o.bytes)/max(1, o.shape.row)))
	o.state.Store(filling)
	o.shape.split(c.data, c.room, c.rows, n, columns)
	return nil
}

// fits reports whether the window has room for rows of a size. If not, those gathered are sent.
func (o *outbox) fits(size int) bool {
	used := o.bytes
	if o.tail != nil {
		used += o.tail.rows * o.shape.row
	}
	if used == 0 || used+size <= o.options.window {
		return true
	}
	o.hurry()
	return false
}

// hurry makes the goroutine send what was gathered. It is called by the writer's goroutine, with
// mu.
func (o *outbox) hurry() {
	o.settle()
	if !o.since.IsZero() {
		o.urgent = true
		o.poke()
	}
}

// takeTail makes the tail that of the caller, which holds mu. It returns nil if there is none, or
// if the writer fills rows of it: then that wakes the goroutine that sends afterwards.
func (o *outbox) takeTail() *outChunk {
	if o.state.Or(taken)&filling != 0 {
		return nil
	}
	return o.tail
}

// settle ends the gathering of rows. It is called by the writer's goroutine, with mu, or by another
// with a tail that it has taken.
func (o *outbox) settle() {
	if c := o.tail; c != nil && c.rows > 0 && o.takeTail() != nil {
		c.data, c.sealed = o.shape.compact(c.data, c.room, c.rows), true
		o.next, o.tail = c.end(), nil
		o.bytes += c.rows * o.shape.row
		o.poke()
	}
}

// newChunk returns a chunk with room for a number of rows, whose content is arbitrary.
func (o *outbox) newChunk(rows int) *outChunk {
	size := o.shape.bytes(rows)
	if n := len(o.spare); n > 0 && cap(o.spare[n-1].data) >= size {
		c := o.spare[n-1]
		o.spare = o.spare[:n-1]
		*c = outChunk{data: c.data[:size], together: c.together[:0]}
		return c
	}
	return &outChunk{data: make([]byte, aligned8(size))[:size]}
}

// commit adds the rows that were filled. It fails if the stream has ended for good meanwhile.
func (o *outbox) commit(n int) error {
	c := o.tail
	o.lastFrom, o.lastRows = c.end(), n
	c.rows += n
	c.together = append(c.together, uint32(n)) //nolint:gosec // at most together
	full := c.rows == c.room
	if wanted := o.release(); !wanted && !full {
		return nil
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.dead != nil {
		return o.takeFailure()
	}
	if full {
		o.settle()
	}
	return nil
}

// touch notes that there is something to send.
func (o *outbox) touch() {
	if o.since.IsZero() {
		o.since = time.Now()
		o.poke()
	}
}

// abandon gives up the rows that were to be filled.
func (o *outbox) abandon() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.release()
	if c := o.takeTail(); c.rows == 0 {
		o.tail, o.chunks = nil, o.chunks[:len(o.chunks)-1]
		if o.allSent() {
			o.since, o.urgent = time.Time{}, false
		}
	}
}

// add adds the rows of a batch, in parts that are written together.
func (o *outbox) add(ctx context.Context, b *Batch) error {
	if err := o.wait(ctx, func() bool { return o.fits(b.Rows() * o.shape.row) }); err != nil {
		return err
	}
	defer o.mu.Unlock()
	o.settle()
	o.recent.most = max(o.recent.most, o.options.history+b.Rows())
	columns := make([][]byte, len(o.shape.sizes))
	for from := 0; from < b.Rows(); from += o.together {
		n := min(o.together, b.Rows()-from)
		c := o.newChunk(n)
		c.first, c.room, c.rows, c.sealed = o.next+uint64(from), n, n, true
		c.together = append(c.together, uint32(n)) //nolint:gosec // at most together
		o.shape.split(c.data, n, 0, n, columns)
		for i, size := range o.shape.sizes {
			copy(columns[i], b.Bytes(i)[from*size:])
		}
		o.chunks = append(o.chunks, c)
	}
	o.bytes += b.Rows() * o.shape.row
	o.added(b.Rows())
	return nil
}

// added counts the rows of a write whose chunks are sealed.
func (o *outbox) added(n int) {
	o.lastFrom, o.lastRows = o.next, n
	o.next += uint64(n) //nolint:gosec // positive
	o.touch()
	o.poke()
}

// adopt adds rows that other calls have written to a ring.
func (o *outbox) adopt(ctx context.Context, id string, sequences []uint64) error {
	if err := o.wait(ctx, func() bool { return true }); err != nil {
		return err
	}
	defer o.mu.Unlock()
	if o.ring != id {
		return fmt.Errorf("the replay has another ring: %w", ring.ErrEnded)
	}
	o.settle()
	o.recent.most = max(o.recent.most, o.options.history+len(sequences))
	o.chunks = append(o.chunks, &outChunk{first: o.next, rows: len(sequences), written: runsOf(sequences), sealed: true})
	o.added(len(sequences))
	return nil
}

// ended reports whether the node can't go on with this writer.
func (o *outbox) ended() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.dead != nil && o.failure == nil
}

// lost returns why rows or items were not confirmed, once.
func (o *outbox) lost() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.takeFailure()
}

// item adds an item of the rows from a number on.
func (o *outbox) item(ctx context.Context, config table.Config, message *replayv1.FeedItem) (*PendingKey, error) {
	q := o.tables[config.Name]
	if q == nil {
		q = &outItems{config: config}
		o.mu.Lock()
		o.tables[config.Name] = q
		o.mu.Unlock()
	}
	most := min(o.options.unconfirmed, maxQueuedItems/4)
	if err := ctx.Err(); err != nil {
		return nil, o.interrupted(err, time.Now())
	}
	if err := o.wait(ctx, func() bool {
		if len(q.items) < most {
			return true
		}
		o.hurry()
		return false
	}); err != nil {
		return nil, fmt.Errorf("create an item of table %q: %w", config.Name, err)
	}
	defer o.mu.Unlock()
	message.Number = q.confirmed + uint64(len(q.items))
	key := &PendingKey{}
	q.items = append(q.items, outItem{message: message, key: key})
	o.resolve(q)
	o.touch()
	return key, nil
}

// flush waits until all rows and items are confirmed.
func (o *outbox) flush(ctx context.Context) error {
	o.mu.Lock()
	o.settle()
	if !o.pending() {
		defer o.mu.Unlock()
		return o.takeFailure()
	}
	o.mu.Unlock()
	if err := o.wait(ctx, func() bool {
		o.hurry()
		return !o.pending()
	}); err != nil {
		return err
	}
	o.mu.Unlock()
	return nil
}

// sequences waits until the rows of the last write are confirmed, or the context ends, and returns
// the numbers of those that are.
func (o *outbox) sequences(ctx context.Context) []uint64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.settle()
	for o.confirmed < o.next && o.running && ctx.Err() == nil {
		o.hurry()
		changed := o.changed
		o.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
		}
		o.mu.Lock()
	}
	o.last = o.last[:0]
	if o.confirmed > o.lastFrom {
		rows := o.recent.rows
		o.last = append(o.last, rows[len(rows)-int(o.confirmed-o.lastFrom):]...) //nolint:gosec // recent has them
	}
	return o.last
}
