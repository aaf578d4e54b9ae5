package replay

import (
	"context"
	"errors"
	"fmt"
	"sync"

	replayv1 "github.com/raylink/raylink/gen/raylink/replay/v1"
	"github.com/raylink/raylink/services/replay/internal/table"
)

// maxUpdatesTogether and maxKeysTogether bound the updates of one call, and the keys of more than
// one.
const (
	maxUpdatesTogether = 1024
	maxKeysTogether    = 1 << 16
)

// updates gathers updates of priorities: one call for each table is in flight, and updates that
// begin meanwhile share the next one. Each has the result that a call of its own would have. It is
// safe for concurrent use.
type updates struct {
	client *Client

	mu sync.Mutex
	// waiting has the updates that wait for the call in flight, in their order. It has an element,
	// which may be empty, for each table that has such a call.
	waiting map[updated][]*update
}

// updated is what an update changes: items of a table with rows of a ring.
type updated struct{ table, ring string }

// update is an update that waits for another call, or for one that it shares.
type update struct {
	req *replayv1.UpdatePrioritiesRequest
	// done is closed when stale and err are set.
	done  chan struct{}
	stale int
	err   error
	// leave is set once a call has it: then it says that nothing waits for the result any more.
	leave func()
}

// update makes an update, and returns how many of its keys found no item.
func (u *updates) update(ctx context.Context, req *replayv1.UpdatePrioritiesRequest) (int, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	of := updated{table: req.GetTable(), ring: req.GetRingId()}
	u.mu.Lock()
	others, busy := u.waiting[of]
	if !busy {
		if u.waiting == nil {
			u.waiting = make(map[updated][]*update)
		}
		u.waiting[of] = nil
		u.mu.Unlock()
		defer u.next(of)
		res, err := u.client.Handle().UpdatePriorities(ctx, req)
		return int(res.GetStale()), ringError(err) //nolint:gosec // at most the number of keys
	}
	p := &update{req: req, done: make(chan struct{})}
	u.waiting[of] = append(others, p)
	u.mu.Unlock()
	select {
	case <-p.done:
		return p.stale, p.err
	case <-ctx.Done():
		u.withdraw(of, p)
		return 0, ctx.Err()
	}
}

// withdraw removes an update whose context has ended, if it is not on its way.
func (u *updates) withdraw(of updated, p *update) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if p.leave != nil {
		p.leave()
		return
	}
	waiting := u.waiting[of]
	for i, other := range waiting {
		if other == p {
			u.waiting[of] = append(waiting[:i:i], waiting[i+1:]...)
			return
		}
	}
}

// next sends updates that have waited for a call, in the background, or notes that there are none.
func (u *updates) next(of updated) {
	some, ctx, cancel := u.gather(of)
	if len(some) == 0 {
		return
	}
	err := u.client.start(func(closed context.Context) {
		defer cancel()
		defer context.AfterFunc(closed, cancel)()
		err := u.send(ctx, some)
		if cause := context.Cause(closed); cause != nil && err != nil {
			err = fmt.Errorf("%w (%w)", cause, err)
		}
		finish(some, err)
		u.next(of)
	})
	if err != nil { // the client was closed
		cancel()
		finish(some, err)
		u.next(of)
	}
}

// finish ends updates that have shared a call. Those that have no result have the error.
func finish(some []*update, err error) {
	for _, p := range some {
		if err != nil {
			p.err = err
		}
		close(p.done)
	}
}

// gather returns the next updates to be sent together, and the context of the call, which ends once
// none of them waits for it.
func (u *updates) gather(of updated) ([]*update, context.Context, context.CancelFunc) {
	u.mu.Lock()
	defer u.mu.Unlock()
	waiting := u.waiting[of]
	if len(waiting) == 0 {
		delete(u.waiting, of)
		return nil, nil, nil
	}
	n, keys := 1, len(waiting[0].req.GetKeys())
	for ; n < min(len(waiting), maxUpdatesTogether); n++ {
		if keys += len(waiting[n].req.GetKeys()); keys > maxKeysTogether {
			break
		}
	}
	some := waiting[:n:n]
	u.waiting[of] = waiting[n:]
	ctx, cancel := context.WithCancel(context.Background())
	left := n
	for _, p := range some {
		p.leave = func() { // called with mu
			if left--; left == 0 {
				cancel()
			}
		}
	}
	return some, ctx, cancel
}

// send makes the call of updates, and sets their results. It returns an error if they have none.
func (u *updates) send(ctx context.Context, some []*update) error {
	if len(some) == 1 {
		res, err := u.client.Handle().UpdatePriorities(ctx, some[0].req)
		some[0].stale = int(res.GetStale()) //nolint:gosec // at most the number of keys
		return ringError(err)
	}
	req := &replayv1.UpdatePrioritiesRequest{Table: some[0].req.GetTable(), RingId: some[0].req.GetRingId()}
	for _, p := range some {
		req.Parts = append(req.Parts, uint32(len(p.req.GetKeys()))) //nolint:gosec // at most the maximum of a message
		req.Keys = append(req.Keys, p.req.GetKeys()...)
		req.Priorities = append(req.Priorities, p.req.GetPriorities()...)
	}
	res, err := u.client.Handle().UpdatePriorities(ctx, req)
	if err != nil {
		return ringError(err)
	}
	if len(res.GetStaleParts()) != len(some) {
		return fmt.Errorf("%w: results of %d updates instead of %d", errResponse, len(res.GetStaleParts()), len(some))
	}
	for i, n := range res.GetStaleParts() {
		some[i].stale = int(n)
	}
	for _, failed := range res.GetFailed() {
		if int(failed.GetPart()) >= len(some) {
			return fmt.Errorf("%w: update %d of %d has failed", errResponse, failed.GetPart(), len(some))
		}
		some[failed.GetPart()].err = failedPart(failed)
	}
	return nil
}

// failedPart returns the error of a part.
func failedPart(failed *replayv1.FailedPart) error {
	err := errors.New(failed.GetText()) //nolint:err113 // the node's
	if reason := reasonError(failed.GetReason()); reason != nil {
		err = fmt.Errorf("%w (%w)", reason, err)
	}
	return err
}

// updateParts makes several updates, one after the other. An error means that nothing was changed,
// or that the table was closed.
func updateParts(t *table.Table, keys []table.Key, priorities []float64, parts []uint32) (*replayv1.UpdatePrioritiesResponse, error) {
	var total uint64
	for _, n := range parts {
		total += uint64(n)
	}
	if total != uint64(len(keys)) || len(keys) != len(priorities) {
		return nil, fmt.Errorf("%w: %d keys and %d priorities for %d parts of %d together", ErrArgument, len(keys), len(priorities), len(parts), total)
	}
	res := &replayv1.UpdatePrioritiesResponse{StaleParts: make([]uint32, len(parts))}
	for i, n := range parts {
		stale, err := t.Update(keys[:n], priorities[:n])
		switch {
		case errors.Is(err, ErrPriority):
			res.Failed = append(res.Failed, &replayv1.FailedPart{
				Part: uint32(i), Reason: replayv1.Reason_REASON_PRIORITY, Text: err.Error(),
			})
		case err != nil:
			return nil, err
		}
		res.Stale += uint64(stale)        //nolint:gosec // not negative
		res.StaleParts[i] = uint32(stale) //nolint:gosec // at most the number of keys
		keys, priorities = keys[n:], priorities[n:]
	}
	return res, nil
}
