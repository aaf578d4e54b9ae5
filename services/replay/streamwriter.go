package replay

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"connectrpc.com/connect/v2"

	replayv1 "github.com/raylink/raylink/gen/raylink/replay/v1"
	"github.com/raylink/raylink/gen/raylink/replay/v1/replayv1raylink"
	"github.com/raylink/raylink/services/replay/ring"
)

// run sends rows and items until the stream ends.
func (o *outbox) run(ctx context.Context) {
	err := o.stream(ctx)
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	needed := !o.opened
	o.running, o.opened, o.room, o.urgent = false, false, nil, false
	o.state.Or(taken)
	for _, q := range o.tables {
		q.blocked = ""
	}
	if err != nil {
		err = ringError(err)
		if needed || o.tail != nil || o.pending() {
			o.failure, o.needed = err, needed
		}
		if !resumable(err) {
			o.dead = err
		}
	}
	o.notify()
}

// drop forgets rows and items that were not confirmed.
func (o *outbox) drop() {
	o.chunks, o.tail, o.bytes, o.spare, o.next = nil, nil, 0, nil, o.confirmed
	o.since = time.Time{}
	for _, q := range o.tables {
		q.items, q.sent, q.resolved = nil, 0, 0
	}
}

// resumable reports whether a writer may go on after an error of its stream: the connection was
// lost.
func resumable(err error) bool {
	for _, reason := range []error{
		ring.ErrEnded, ring.ErrClosed, ring.ErrBatch, ring.ErrLayout, ErrTable, ErrItem, ErrPriority, ErrArgument, errResponse,
	} {
		if errors.Is(err, reason) {
			return false
		}
	}
	switch connect.CodeOf(err) {
	case connect.CodeInvalidArgument, connect.CodeFailedPrecondition, connect.CodeUnimplemented, connect.CodePermissionDenied,
		connect.CodeUnauthenticated:
		return false
	default:
		return true
	}
}

// errResponse means that the node has sent something that does not fit.
var errResponse = errors.New("invalid response from the replay")

// stream opens a stream and sends on it, until it fails or was idle.
func (o *outbox) stream(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := o.client.Handle().Feed(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = stream.Close() }()
	// Over HTTP/2 a context that ends does not interrupt Receive.
	defer context.AfterFunc(ctx, func() { _ = stream.Close() })()
	opening := o.open()
	received := make(chan error, 1)
	go func() { received <- o.receive(stream) }()
	sent := stream.Send(opening)
	timer := time.NewTimer(idleStream)
	defer timer.Stop()
	for sent == nil {
		req, wait := o.take(time.Now())
		if req != nil {
			sent = stream.Send(req)
			continue
		}
		timer.Reset(wait)
		select {
		case <-o.wake:
		case <-timer.C:
			if o.idle(wait) {
				return finished(stream, received)
			}
		case err := <-received:
			return orLost(err)
		}
	}
	if errors.Is(sent, io.EOF) {
		return orLost(<-received) // which says why the stream has ended
	}
	cancel()
	<-received //nolint:errcheck // the context was canceled
	return sent
}

// finished ends a stream on which everything is confirmed. So an error does not matter.
func finished(stream replayv1raylink.ReplayFeedClientStream, received <-chan error) error {
	if stream.CloseSend() == nil {
		<-received //nolint:errcheck // see above
	}
	return nil
}

// orLost returns an error for a stream that the node has ended without one.
func orLost(err error) error {
	if err == nil {
		return connect.NewError(connect.CodeUnavailable, "the node has ended the stream")
	}
	return err
}

// open returns the first message.
func (o *outbox) open() *replayv1.FeedRequest {
	o.mu.Lock()
	defer o.mu.Unlock()
	resume := o.tail != nil || o.pending()
	history := uint64(o.options.history) //nolint:gosec // not negative
	open := &replayv1.FeedOpen{RingId: o.ring, Resume: resume, Rows: o.next, History: history, Caller: o.options.caller}
	if !resume {
		o.id, o.seen = rand.Text(), 0
		for _, q := range o.tables {
			q.confirmed = 0
		}
		if n := min(len(o.recent.rows), o.options.history); n > 0 {
			open.Before = runsOf(o.recent.rows[len(o.recent.rows)-n:])
		}
	}
	open.Writer = o.id
	o.sent, o.sentRows = 0, o.confirmed
	for _, c := range o.chunks {
		c.again = c.again || c.sealed
	}
	for _, q := range o.tables {
		q.sent = 0
		for i := range q.items {
			// The node may not know the rows any more.
			if it := &q.items[i]; it.runs != nil {
				m := it.message
				it.message = &replayv1.FeedItem{Table: m.GetTable(), Number: m.GetNumber(), Priority: m.Priority, Runs: it.runs}
			}
		}
	}
	return &replayv1.FeedRequest{Open: open, Seen: o.seen}
}

// idle reports whether the stream has nothing to do. Then no other message follows.
func (o *outbox) idle(waited time.Duration) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if waited < idleStream || !o.opened || o.tail != nil || o.pending() {
		return false
	}
	o.opened = false // calls wait for the next stream
	return true
}

// take returns the next message, or how long there will be none unless wake has an element.
func (o *outbox) take(now time.Time) (*replayv1.FeedRequest, time.Duration) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.opened {
		return nil, idleStream
	}
	req := &replayv1.FeedRequest{Seen: o.seen}
	// Items go before later rows, because the node forgets those before.
	if o.sentRows < o.next || o.urgent || o.since.IsZero() || now.Sub(o.since) >= linger {
		if o.takeItems(req); len(req.GetItems()) > 0 {
			return req, o.took(now)
		}
	}
	if o.sent == len(o.chunks)-1 && !o.chunks[o.sent].sealed && !o.since.IsZero() {
		if age := now.Sub(o.since); !o.urgent && age < linger {
			return nil, linger - age
		}
		if o.takeTail() != nil {
			o.settle()
		}
	}
	if o.sent < len(o.chunks) && o.chunks[o.sent].sealed {
		c := o.chunks[o.sent]
		o.sent++
		o.sentRows = c.end()
		req.Rows = &replayv1.FeedRows{First: c.first, Together: c.together, Data: c.data, Written: c.written}
	} else if age := now.Sub(o.since); !o.since.IsZero() && !o.urgent && age < linger {
		return nil, linger - age
	}
	if o.takeItems(req); req.GetRows() == nil && len(req.GetItems()) == 0 {
		return nil, idleStream
	}
	return req, o.took(now)
}

// takeItems adds items of rows that are sent to a message.
func (o *outbox) takeItems(req *replayv1.FeedRequest) {
	for _, q := range o.tables {
		for q.sent < len(q.items) && len(req.GetItems()) < maxItemsTogether && q.items[q.sent].end() <= o.sentRows {
			req.Items = append(req.Items, q.items[q.sent].message)
			q.sent++
		}
	}
}

// took notes that a message was taken. It returns 0.
func (o *outbox) took(now time.Time) time.Duration {
	if o.allSent() {
		o.since, o.urgent = time.Time{}, false
	} else if o.sent == len(o.chunks)-1 && !o.chunks[o.sent].sealed {
		o.since = now // the rows that are left are newer
	}
	return 0
}

// allSent reports whether everything is on its way.
func (o *outbox) allSent() bool {
	for _, q := range o.tables {
		if q.sent < len(q.items) {
			return false
		}
	}
	return o.sent == len(o.chunks)
}

// receive handles responses until the stream ends. It returns nil if the node has ended it.
func (o *outbox) receive(stream replayv1raylink.ReplayFeedClientStream) error {
	for {
		res, err := stream.Receive()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := o.handle(res); err != nil {
			_ = stream.Close()
			return err
		}
	}
}

// handle handles a response.
func (o *outbox) handle(res *replayv1.FeedResponse) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	defer o.notify()
	if serial := res.GetSerial(); serial != 0 {
		if serial <= o.seen {
			return nil // from before the stream was lost
		}
		o.seen = serial
	}
	if err := o.confirmRows(res.GetRows()); err != nil {
		return err
	}
	q := o.tables[res.GetTable()]
	if keys := res.GetKeys(); len(keys) > 0 {
		if q == nil || len(keys) > len(q.items) {
			return fmt.Errorf("%w: keys of %d items of table %q", errResponse, len(keys), res.GetTable())
		}
		for i, number := range keys {
			if number != 0 {
				q.items[i].key.key = Key{ring: o.ring, table: res.GetTable(), number: number, rows: q.items[i].rows()}
			}
			q.items[i].key.confirmed.Store(true)
		}
		q.items = slices.Delete(q.items, 0, len(keys))
		q.resolved = max(0, q.resolved-len(keys))
		q.sent, q.confirmed, q.blocked = max(0, q.sent-len(keys)), q.confirmed+uint64(len(keys)), ""
	}
	if q != nil && res.GetBlocked() != nil {
		q.blocked = res.GetBlocked().GetText()
	}
	if res.GetNoRoom() != nil {
		o.room = noRoomOf(res.GetNoRoom())
	}
	if opened := res.GetOpened(); opened != nil {
		if opened.GetRows() != o.confirmed {
			return fmt.Errorf("%w: it has %d rows of the writer, and has confirmed %d", errResponse, opened.GetRows(), o.confirmed)
		}
		if err := o.trim(); err != nil {
			return err
		}
		o.ring, o.opened, o.sentRows = opened.GetRingId(), true, o.confirmed
		if o.tail != nil || o.pending() {
			o.urgent, o.since = true, time.Now()
		}
		o.poke()
	}
	return nil
}

// resolve looks up the sequence numbers of the rows of items, once they are confirmed.
func (o *outbox) resolve(q *outItems) {
	for ; q.resolved < len(q.items) && q.items[q.resolved].end() <= o.confirmed; q.resolved++ {
		it, rows := &q.items[q.resolved], o.recent.rows
		begin := len(rows) - int(o.confirmed-it.message.GetFirst()) //nolint:gosec // recent has them
		it.runs = runsOf(rows[begin : begin+int(it.message.GetLength())])
	}
}

// trim removes the confirmed rows of the first chunk.
func (o *outbox) trim() error {
	if len(o.chunks) == 0 || o.chunks[0].first >= o.confirmed {
		return nil
	}
	c := o.chunks[0]
	skip, groups := int(o.confirmed-c.first), 0 //nolint:gosec // fewer than its rows
	for k := 0; k < skip; groups++ {
		if groups == len(c.together) || k+int(c.together[groups]) > skip {
			return fmt.Errorf("%w: it has a part of %d rows that were written together", errResponse, c.rows)
		}
		k += int(c.together[groups])
	}
	rest := &outChunk{first: o.confirmed, rows: c.rows - skip, together: c.together[groups:], sealed: true, again: true}
	rest.room = rest.rows
	rest.data = make([]byte, aligned8(o.shape.bytes(rest.rows)))[:o.shape.bytes(rest.rows)]
	from, to := make([][]byte, len(o.shape.sizes)), make([][]byte, len(o.shape.sizes))
	o.shape.split(c.data, c.rows, skip, rest.rows, from)
	o.shape.split(rest.data, rest.rows, 0, rest.rows, to)
	for i := range to {
		copy(to[i], from[i])
	}
	o.bytes -= skip * o.shape.row
	o.chunks[0] = rest
	return nil
}

// confirmRows notes the numbers of rows that were written.
func (o *outbox) confirmRows(runs []*replayv1.Run) error {
	if len(runs) == 0 {
		return nil
	}
	n, err := countRows(runs, o.next-o.confirmed)
	if err != nil {
		return fmt.Errorf("%w: %w", errResponse, err)
	}
	sequences := lastOfRuns(runs, int(n)) //nolint:gosec // at most those that were written
	o.recent.add("", sequences)
	o.confirmed += n
	o.room = nil
	for _, q := range o.tables {
		o.resolve(q)
	}
	done := 0
	for _, c := range o.chunks {
		if !c.sealed || c.end() > o.confirmed {
			break
		}
		if c.written == nil {
			o.bytes -= c.rows * o.shape.row
			if !c.again && cap(c.data) <= 2*chunkBytes && len(o.spare) < 64 {
				o.spare = append(o.spare, c)
			}
		}
		done++
	}
	o.chunks = slices.Delete(o.chunks, 0, done)
	o.sent = max(0, o.sent-done)
	return nil
}
