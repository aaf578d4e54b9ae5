package replay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	replayv1 "github.com/raylink/raylink/gen/raylink/replay/v1"
	"github.com/raylink/raylink/gen/raylink/replay/v1/replayv1raylink"
	"github.com/raylink/raylink/services/replay/internal/table"
	"github.com/raylink/raylink/services/replay/ring"
)

// Limits of what the node remembers of writers that stream.
const (
	// maxLost and lostFor are how many writers whose stream was lost the node remembers, and for
	// how long.
	maxLost = 1024
	lostFor = 10 * time.Minute
	// maxUnseen is the maximum number of runs and keys that a writer has not said it has received.
	maxUnseen = 1 << 20
	// maxQueuedItems is the maximum number of items of one stream that wait for limiters.
	maxQueuedItems = 1 << 16
	// maxWriterID is the maximum length of a writer's id.
	maxWriterID = 64
	// roomReportInterval is how often a stream reports that its rows wait for room.
	roomReportInterval = 200 * time.Millisecond
)

var (
	// errForgotten ends the stream of a writer that resumes and that the node does not know.
	errForgotten = fmt.Errorf("%w: the node does not know this writer: it was restarted, or the writer was away for too long", ErrArgument)
	errReplaced  = errors.New("a newer stream of the same writer has replaced this one")
)

// feeds are the writers that stream to a node.
type feeds struct {
	mu      sync.Mutex
	writers map[string]*fedWriter
	closed  error
}

// fedWriter is what a node knows about a writer that streams. It outlives a stream that was lost.
type fedWriter struct {
	id, caller string
	// owner is full while a stream feeds.
	owner chan struct{}
	// end ends the newest stream. streams is how many have not ended, and lost when the last one
	// did. The lock of feeds guards them.
	end     context.CancelCauseFunc
	streams int
	lost    time.Time

	// rows is how many rows were written, and history has the sequence numbers of the last. Only
	// the stream's goroutine uses them.
	rows    uint64
	history history

	// mu guards what follows.
	mu sync.Mutex
	// items is how many items of each table were inserted.
	items map[string]uint64
	// serial is that of the last response that confirms something; unseen are those that the writer
	// may not have received, with size runs and keys.
	serial uint64
	unseen []*replayv1.FeedResponse
	size   int
	// send sends a response on the current stream; nil if there is none.
	send func(*replayv1.FeedResponse) error
}

// close ends all streams.
func (f *feeds) close(cause error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = cause
	for _, w := range f.writers {
		w.end(cause)
	}
}

// join returns the writer of a stream once no other stream of it is left. end ends the new one.
// together is how many rows a message has at most.
func (f *feeds) join(ctx context.Context, open *replayv1.FeedOpen, together int, end context.CancelCauseFunc) (*fedWriter, error) {
	w, err := f.enter(open, together, end)
	if err != nil {
		return nil, err
	}
	select {
	case w.owner <- struct{}{}:
		return w, nil
	case <-ctx.Done():
		f.leave(w, false)
		return nil, context.Cause(ctx)
	}
}

func (f *feeds) enter(open *replayv1.FeedOpen, together int, end context.CancelCauseFunc) (*fedWriter, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed != nil {
		return nil, f.closed
	}
	f.forget(time.Now())
	w := f.writers[open.GetWriter()]
	switch {
	case w == nil && open.GetResume():
		return nil, errForgotten
	case w != nil && !open.GetResume():
		return nil, fmt.Errorf("%w: a writer %q exists", ErrArgument, open.GetWriter())
	case w == nil:
		w = &fedWriter{
			id: open.GetWriter(), caller: open.GetCaller(), owner: make(chan struct{}, 1), rows: open.GetRows(),
			items: make(map[string]uint64),
		}
		w.history.most = int(open.GetHistory()) + together //nolint:gosec // at most the capacity
		w.history.add("", lastOfRuns(open.GetBefore(), w.history.most))
		if f.writers == nil {
			f.writers = make(map[string]*fedWriter)
		}
		f.writers[w.id] = w
	default:
		w.end(errReplaced)
	}
	w.end = end
	w.streams++
	return w, nil
}

// leave ends the stream of a writer, which is forgotten if the writer has finished.
func (f *feeds) leave(w *fedWriter, finished bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if finished && f.writers[w.id] == w {
		delete(f.writers, w.id)
	}
	w.streams--
	w.lost = time.Now()
}

// forget removes writers whose stream was lost long ago, and the oldest of too many.
func (f *feeds) forget(now time.Time) {
	for {
		var oldest *fedWriter
		lost := 0
		for id, w := range f.writers {
			switch {
			case w.streams > 0:
			case now.Sub(w.lost) > lostFor:
				delete(f.writers, id)
			default:
				lost++
				if oldest == nil || w.lost.Before(oldest.lost) {
					oldest = w
				}
			}
		}
		if lost <= maxLost {
			return
		}
		delete(f.writers, oldest.id)
	}
}

// Feed writes the rows and items of one writer.
func (n *node) Feed(ctx context.Context, stream replayv1raylink.ReplayFeedServerStream) error {
	first, err := stream.Receive()
	if err != nil {
		return err
	}
	open := first.GetOpen()
	err = n.checkOpen(first)
	if err == nil {
		_, err = n.ring.Oldest(ctx) // fails if the ring has ended
	}
	if err != nil {
		return connectError(fmt.Errorf("stream rows: %w", err))
	}
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	w, err := n.feeds.join(ctx, open, n.ring.Layout().MaxTogether(), end)
	if err != nil {
		return connectError(fmt.Errorf("stream rows: %w", err))
	}
	f := &feeding{node: n, writer: w, inPlace: n.writer.InPlace(), shape: shapeOf(n.ring.Layout()), end: end, tables: make(map[string]*fedItems)}
	f.columns = make([][]byte, len(f.shape.sizes))
	err = f.serve(ctx, stream, first.GetSeen())
	end(err)
	f.workers.Wait()
	w.mu.Lock()
	w.send = nil
	w.mu.Unlock()
	<-w.owner
	n.feeds.leave(w, err == nil)
	if err != nil {
		return connectError(fmt.Errorf("stream rows: %w", err))
	}
	return nil
}

// checkOpen checks the first message of a stream.
func (n *node) checkOpen(first *replayv1.FeedRequest) error {
	open := first.GetOpen()
	capacity := n.ring.Layout().Capacity
	switch {
	case open == nil || first.GetRows() != nil || len(first.GetItems()) > 0:
		return fmt.Errorf("%w: the first message opens the stream, and has nothing else", ErrArgument)
	case open.GetWriter() == "" || len(open.GetWriter()) > maxWriterID:
		return fmt.Errorf("%w: a writer's id of %d bytes: 1 to %d are possible", ErrArgument, len(open.GetWriter()), maxWriterID)
	case !n.isRing(open.GetRingId()):
		return fmt.Errorf("the writer's rows are those of the ring before: %w", ring.ErrEnded)
	case open.GetHistory() > capacity:
		return fmt.Errorf("%w: a history of %d rows, and the ring has %d", ErrArgument, open.GetHistory(), capacity)
	case open.GetRows() > 1<<62:
		return fmt.Errorf("%w: %d rows written before", ErrArgument, open.GetRows())
	}
	before, err := countRows(open.GetBefore(), capacity)
	if err == nil && before > open.GetRows() {
		err = fmt.Errorf("%w: numbers of %d rows, and %d were written", ErrArgument, before, open.GetRows())
	}
	return err
}

// feeding is a stream of a writer.
type feeding struct {
	node    *node
	writer  *fedWriter
	inPlace *ring.InPlace
	shape   rowShape
	columns [][]byte
	// end ends the stream with the error of a worker.
	end context.CancelCauseFunc
	// tables have the items that wait to be inserted; workers insert them, one for each table.
	tables  map[string]*fedItems
	workers sync.WaitGroup
}

// serve handles the messages of a stream. It returns nil if the writer has ended it.
func (f *feeding) serve(ctx context.Context, stream replayv1raylink.ReplayFeedServerStream, seen uint64) error {
	if err := f.begin(stream, seen); err != nil {
		return err
	}
	type received struct {
		req *replayv1.FeedRequest
		err error
	}
	requests := make(chan received)
	go func() { // ends with the call
		for {
			var r received
			r.req, r.err = stream.Receive()
			select {
			case requests <- r:
			case <-ctx.Done():
				return
			}
			if r.err != nil {
				return
			}
		}
	}()
	for {
		select {
		case r := <-requests:
			if errors.Is(r.err, io.EOF) {
				return nil
			}
			if r.err != nil {
				return r.err
			}
			if err := f.handle(ctx, r.req); err != nil {
				return err
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// begin sends what the writer has not seen, and then that the stream is open.
func (f *feeding) begin(stream replayv1raylink.ReplayFeedServerStream, seen uint64) error {
	w := f.writer
	w.mu.Lock()
	defer w.mu.Unlock()
	w.see(seen)
	for _, res := range w.unseen {
		if err := stream.Send(res); err != nil {
			return err
		}
	}
	w.send = stream.Send
	return stream.Send(&replayv1.FeedResponse{Opened: &replayv1.FeedOpened{
		RingId: f.node.ring.ID().String(), Rows: w.rows,
	}})
}

// see forgets responses that the writer has received.
func (w *fedWriter) see(serial uint64) {
	for len(w.unseen) > 0 && w.unseen[0].GetSerial() <= serial {
		w.size -= sizeOf(w.unseen[0])
		w.unseen[0] = nil
		w.unseen = w.unseen[1:]
	}
}

func sizeOf(res *replayv1.FeedResponse) int { return 1 + len(res.GetRows()) + len(res.GetKeys()) }

// confirm sends a response that is kept until the writer has seen it.
func (w *fedWriter) confirm(res *replayv1.FeedResponse) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.items[res.GetTable()] += uint64(len(res.GetKeys()))
	w.serial++
	res.Serial = w.serial
	w.unseen = append(w.unseen, res)
	w.size += sizeOf(res)
	if w.send == nil {
		return nil
	}
	return w.send(res)
}

// report sends a response that confirms nothing.
func (w *fedWriter) report(res *replayv1.FeedResponse) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.send == nil {
		return nil
	}
	return w.send(res)
}

// handle handles a message: it checks all of it before it writes any row.
func (f *feeding) handle(ctx context.Context, req *replayv1.FeedRequest) error {
	rows, err := f.check(req)
	if err != nil {
		return err
	}
	w := f.writer
	w.mu.Lock()
	w.see(req.GetSeen())
	unseen := w.size
	w.mu.Unlock()
	if unseen > maxUnseen {
		return fmt.Errorf("%w: the writer has not seen %d numbers of rows and items: it must say which it has received", ErrArgument, unseen)
	}
	switch written := req.GetRows().GetWritten(); {
	case len(written) > 0:
		w.rows += uint64(rows) //nolint:gosec // not negative
		w.history.add("", lastOfRuns(written, w.history.most))
		err = w.confirm(&replayv1.FeedResponse{Rows: written})
	case rows > 0:
		err = f.write(ctx, req.GetRows(), rows)
	}
	if err != nil {
		return err
	}
	for _, it := range req.GetItems() {
		f.queue(ctx, it)
	}
	return nil
}

// check checks a message, and returns how many rows it has.
func (f *feeding) check(req *replayv1.FeedRequest) (int, error) {
	w, rows := f.writer, req.GetRows()
	if req.GetOpen() != nil {
		return 0, fmt.Errorf("%w: the stream is open", ErrArgument)
	}
	n := 0
	if rows != nil {
		if rows.GetFirst() != w.rows {
			return 0, fmt.Errorf("%w: the writer's row %d follows row %d", ErrArgument, rows.GetFirst(), w.rows)
		}
		var err error
		if len(rows.GetWritten()) > 0 {
			if len(rows.GetTogether())+len(rows.GetData()) > 0 {
				return 0, fmt.Errorf("%w: rows that were written have no data", ErrArgument)
			}
			var count uint64
			count, err = countRows(rows.GetWritten(), f.node.ring.Layout().Capacity)
			n = int(count) //nolint:gosec // at most the capacity
		} else {
			n, err = f.shape.rows(rows.GetData(), rows.GetTogether(), f.node.ring.Layout().MaxTogether())
		}
		if err != nil {
			return 0, err
		}
	}
	return n, f.checkItems(req.GetItems(), n)
}

// checkItems checks items of a message that has n rows.
func (f *feeding) checkItems(items []*replayv1.FeedItem, n int) error {
	w := f.writer
	total := w.rows + uint64(n)                                //nolint:gosec // not negative
	known := uint64(min(w.history.most, w.history.length()+n)) //nolint:gosec // not negative
	numbers, waiting := make(map[string]uint64, 1), len(items)
	for _, q := range f.tables {
		waiting += q.length()
	}
	if waiting > maxQueuedItems {
		return fmt.Errorf("%w: %d items wait to be inserted, and at most %d may", ErrArgument, waiting, maxQueuedItems)
	}
	for _, it := range items {
		t, err := f.node.tables.find(it.GetTable())
		if err != nil {
			return err
		}
		number, ok := numbers[it.GetTable()]
		if !ok {
			number = f.received(it.GetTable())
		}
		numbers[it.GetTable()] = number + 1
		first, length := it.GetFirst(), uint64(it.GetLength())
		item := itemOf(it.GetRuns(), it.Priority) //nolint:protogetter // nil if it is not set
		if len(it.GetRuns()) == 0 {
			item.Run.Length = it.GetLength()
		}
		switch {
		case it.GetNumber() != number:
			return fmt.Errorf("%w: the writer's item %d for table %q follows item %d", ErrArgument, it.GetNumber(), it.GetTable(), number)
		case len(it.GetRuns()) > 0:
			if first != 0 || length != 0 {
				return fmt.Errorf("%w: it has both sequence numbers and numbers of the writer", ErrItem)
			}
		case length == 0 || first > total || length > total-first || total-first > known:
			return fmt.Errorf("%w: it has %d rows from the writer's row %d on, and those before row %d are known, %d of them",
				ErrItem, length, first, total, known)
		}
		if err := t.Check(&item); err != nil {
			return err
		}
	}
	return nil
}

// write writes rows: all of them together if that is possible, otherwise as the writer wrote them.
func (f *feeding) write(ctx context.Context, rows *replayv1.FeedRows, n int) error {
	room := func(from, count int) func(columns [][]byte) {
		return func(columns [][]byte) {
			f.shape.split(rows.GetData(), n, from, count, f.columns)
			for i, c := range columns {
				copy(c, f.columns[i])
			}
		}
	}
	err := f.inPlace.TryAppend(n, room(0, n))
	if err == nil {
		return f.wrote()
	}
	if !errors.Is(err, ring.ErrNoRoom) {
		return err
	}
	from := 0
	for _, k := range rows.GetTogether() {
		count := int(k)
		for begin := time.Now(); ; {
			waiting, cancel := context.WithTimeout(ctx, roomReportInterval)
			err = f.inPlace.Append(waiting, count, room(from, count))
			cancel()
			blocked, ok := errors.AsType[*ring.NoRoomError](err)
			if !ok || ctx.Err() != nil {
				break
			}
			blocked.Waited = time.Since(begin)
			if err = f.writer.report(&replayv1.FeedResponse{NoRoom: detailOf(blocked)}); err != nil {
				break
			}
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil {
			return err
		}
		if err := f.wrote(); err != nil {
			return err
		}
		from += count
	}
	return nil
}

// wrote confirms the rows of the last write.
func (f *feeding) wrote() error {
	w, sequences := f.writer, f.inPlace.Sequences()
	w.rows += uint64(len(sequences))
	w.history.add("", sequences)
	return w.confirm(&replayv1.FeedResponse{Rows: runsOf(sequences)})
}

// fedItems are items of a stream that wait to be inserted into a table.
type fedItems struct {
	mu    sync.Mutex
	items []table.Item
	// received is how many items the node has got from the writer.
	received uint64
	// added has an element if there are items.
	added chan struct{}
}

func (q *fedItems) length() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.items)
}

// received returns how many items of a table the writer has sent.
func (f *feeding) received(name string) uint64 {
	if q := f.tables[name]; q != nil {
		return q.received
	}
	f.writer.mu.Lock()
	defer f.writer.mu.Unlock()
	return f.writer.items[name]
}

// queue lets a worker insert an item.
func (f *feeding) queue(ctx context.Context, it *replayv1.FeedItem) {
	w, name := f.writer, it.GetTable()
	q := f.tables[name]
	if q == nil {
		q = &fedItems{received: f.received(name), added: make(chan struct{}, 1)}
		f.tables[name] = q
		f.workers.Go(func() {
			if err := f.insert(ctx, name, q); err != nil {
				f.end(err)
			}
		})
	}
	q.received++
	runs := it.GetRuns()
	if len(runs) == 0 {
		rows := w.history.rows
		begin := len(rows) - int(w.rows-it.GetFirst()) //nolint:gosec // checkItems has compared them
		runs = runsOf(rows[begin : begin+int(it.GetLength())])
	}
	q.mu.Lock()
	q.items = append(q.items, itemOf(runs, it.Priority)) //nolint:protogetter // nil if it is not set
	q.mu.Unlock()
	select {
	case q.added <- struct{}{}:
	default:
	}
}

// take returns the next items.
func (q *fedItems) take() []table.Item {
	q.mu.Lock()
	defer q.mu.Unlock()
	some := q.items[:min(len(q.items), maxItemsTogether)]
	if q.items = q.items[len(some):]; len(q.items) == 0 {
		q.items = nil
	}
	return some
}

// insert inserts items until the stream ends.
func (f *feeding) insert(ctx context.Context, name string, q *fedItems) error {
	for {
		some := q.take()
		if len(some) == 0 {
			select {
			case <-q.added:
				continue
			case <-ctx.Done():
				return nil
			}
		}
		if err := f.insertSome(ctx, name, some); err != nil {
			return err
		}
	}
}

func (f *feeding) insertSome(ctx context.Context, name string, items []table.Item) error {
	w := f.writer
	t, err := f.node.table(ctx, name)
	if err != nil {
		return err
	}
	keys, confirmed := make([]table.Key, len(items)), 0
	confirm := func(done int) error {
		if done == confirmed {
			return nil
		}
		res := &replayv1.FeedResponse{Table: name}
		for _, key := range keys[confirmed:done] {
			res.Keys = append(res.Keys, uint64(key))
		}
		confirmed = done
		return w.confirm(res)
	}
	done, err := t.TryInsert(w.caller, items, keys)
	if errors.Is(err, table.ErrBlocked) {
		if err := confirm(done); err != nil {
			return err
		}
		before := done
		done, err = t.InsertReporting(ctx, w.caller, items[before:], keys[before:], func(b table.Blocked) {
			// A stream that has failed ends by its context.
			_ = confirm(before + b.Done)
			_ = w.report(&replayv1.FeedResponse{Table: name, Blocked: blockedMessage(&b)})
			_, _ = f.node.table(ctx, name) // removes items of rows that were overwritten meanwhile
		})
		done += before
	}
	if sendErr := confirm(done); err == nil {
		err = sendErr
	}
	if ctx.Err() != nil {
		return nil //nolint:nilerr // the stream has ended
	}
	return err
}
