package replay

import (
	"context"
	"fmt"
	"math"
	"slices"
	"sync"
	"time"

	replayv1 "github.com/raylink/raylink/gen/raylink/replay/v1"
	"github.com/raylink/raylink/services/replay/internal/table"
)

// unconfirmed is an item that the node has not confirmed. Its rows are those of a ring.
type unconfirmed struct {
	ring string
	item *replayv1.Item
	key  *PendingKey
}

// itemQueue sends the items of a writer to a table. A goroutine sends them, which ends when there
// are none.
type itemQueue struct {
	client *Client
	config table.Config
	caller string
	most   int

	// mu guards the fields below.
	mu sync.Mutex
	// items are in their order; those that are being sent are the first of them.
	items   []unconfirmed
	sending bool
	// blocked is what the limiter waited for when the node last said so; call is the call that
	// waits at the node.
	blocked string
	call    uint64
	// failure is why the items were lost, until it was returned.
	failure *UnconfirmedError
	// changed is closed when any of that has changed.
	changed chan struct{}
}

const (
	// maxItemsTogether is the maximum number of items in one call.
	maxItemsTogether = 256
	// maxItemsWaiting is that of a call that waits for the limiter. The keys of its items are only
	// known once all of them have been inserted.
	maxItemsWaiting = 16
)

// add adds an item once there is room for it.
func (q *itemQueue) add(ctx context.Context, u unconfirmed) error {
	return q.wait(ctx, q.most-1, func() error {
		if !q.sending {
			if err := q.client.start(q.send); err != nil {
				return fmt.Errorf("create an item of table %q: %w", q.config.Name, err)
			}
			q.sending = true
		}
		q.items = append(q.items, u)
		return nil
	})
}

// wait waits until there are no more than a number of items, and calls then with mu.
func (q *itemQueue) wait(ctx context.Context, most int, then func() error) error {
	begin := time.Now()
	for {
		if err := ctx.Err(); err != nil && then != nil {
			return q.interrupted(err, begin)
		}
		q.mu.Lock()
		if err := q.taken(); err != nil {
			q.mu.Unlock()
			return err
		}
		if len(q.items) <= most {
			defer q.mu.Unlock()
			if then == nil {
				return nil
			}
			return then()
		}
		changed := q.changed
		q.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return q.interrupted(ctx.Err(), begin)
		}
	}
}

// interrupted returns the error of a wait that the context ended.
func (q *itemQueue) interrupted(cause error, begin time.Time) error {
	q.mu.Lock()
	blocked, call, items := q.blocked, q.call, len(q.items)
	q.mu.Unlock()
	waited := time.Since(begin).Round(time.Millisecond)
	return fmt.Errorf("table %q: %w: waited %v with %d unconfirmed items for %s: %w",
		q.config.Name, ErrBlocked, waited, items, q.client.waitingFor(q.config.Name, call, blocked), cause)
}

// takeFailure returns why items were lost, once.
func (q *itemQueue) takeFailure() error {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.taken()
}

// taken is takeFailure with mu.
func (q *itemQueue) taken() error {
	if q.failure == nil {
		return nil
	}
	failure := q.failure
	q.failure = nil
	return failure
}

// send sends items until there are none.
func (q *itemQueue) send(ctx context.Context) {
	waits := false
	for {
		some, call := q.next(waits)
		if some == nil {
			return
		}
		req := &replayv1.CreateItemsRequest{Table: q.config.Name, Caller: q.caller, RingId: some[0].ring, Call: call}
		if waits {
			req.WaitMs = math.MaxUint32
		}
		for _, u := range some {
			req.Items = append(req.Items, u.item)
		}
		var res *replayv1.CreateItemsResponse
		err := q.client.whileServed(ctx, func(ctx context.Context) error {
			var err error
			res, err = q.client.Handle().CreateItems(ctx, req)
			return err
		})
		if err == nil && len(res.GetKeys()) > len(some) {
			err = fmt.Errorf("invalid response from the replay: %d keys of %d items", len(res.GetKeys()), len(some))
		}
		q.sent(some, res, err)
		// The first call finds out that the limiter waits, and for what. The next one waits.
		waits = res.GetBlocked() != nil
	}
}

// next returns the next items to send, with rows of one ring, or none once there are none. If they
// are for a call that waits, it has a number.
func (q *itemQueue) next(waits bool) (items []unconfirmed, call uint64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.items) == 0 {
		q.sending = false
		return nil, 0
	}
	n, most := 1, maxItemsTogether
	if waits {
		most, call = maxItemsWaiting, newCall()
	}
	q.call = call
	for n < min(len(q.items), most) && q.items[n].ring == q.items[0].ring {
		n++
	}
	return slices.Clone(q.items[:n]), call
}

// sent notes which items were inserted, or that all that are unconfirmed were lost.
func (q *itemQueue) sent(some []unconfirmed, res *replayv1.CreateItemsResponse, err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if err != nil {
		q.failure = &UnconfirmedError{Table: q.config.Name, Items: len(q.items), Cause: err}
		q.items, q.blocked = nil, ""
	} else {
		for i, number := range res.GetKeys() {
			if number != 0 {
				some[i].key.key = keyOf(some[i].ring, q.config.Name, number, some[i].item.GetRuns())
			}
			some[i].key.confirmed.Store(true)
		}
		q.items = slices.Delete(q.items, 0, len(res.GetKeys()))
		q.blocked = res.GetBlocked().GetText()
	}
	close(q.changed)
	q.changed = make(chan struct{})
}
