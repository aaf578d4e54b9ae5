package ps

import (
	"context"
	"log/slog"
	"sync"
	"time"

	psv1 "github.com/raylink/raylink/gen/raylink/ps/v1"
	"github.com/raylink/raylink/gen/raylink/ps/v1/psv1raylink"
	"github.com/raylink/raylink/internal/backoff"
)

// Bounds of the pauses between attempts to reach an officer or the captain.
const (
	firstPause = 50 * time.Millisecond
	maxPause   = 5 * time.Second
)

// officerSession is the captain's session with one officer. Its task sends the newest version of
// each tag, skipping versions superseded while the officer was busy.
type officerSession struct {
	officer *psv1raylink.Officer
	request *psv1.EnlistRequest
	// sent holds the id of the newest version of each tag that the officer has. Once the task runs,
	// only the task uses it.
	sent map[string]uint64
	// wake has an entry if there may be new versions to send.
	wake  chan struct{}
	ended chan struct{}
	once  sync.Once
}

func newOfficerSession(officer *psv1raylink.Officer, req *psv1.EnlistRequest) *officerSession {
	return &officerSession{
		officer: officer, request: req, sent: make(map[string]uint64), wake: make(chan struct{}, 1), ended: make(chan struct{}),
	}
}

// notify wakes the task to send new versions.
func (o *officerSession) notify() {
	select {
	case o.wake <- struct{}{}:
	default:
	}
}

// end ends the task, because another officer has replaced this one.
func (o *officerSession) end() { o.once.Do(func() { close(o.ended) }) }

// run is the session's task. It retries an officer that does not respond until the officer is
// replaced or its node has ended. Failures are logged once, not at each try.
func (o *officerSession) run(ctx context.Context, c *captain) error {
	ctx, cancel := context.WithCancel(ctx)
	var watching sync.WaitGroup
	defer watching.Wait()
	defer cancel()
	nodeEnded := make(chan struct{})
	watching.Go(func() {
		if o.officer.Ref().Ended(ctx) == nil {
			close(nodeEnded)
		}
	})
	machine := slog.String("machine", o.request.GetMachine())
	pause := backoff.Backoff{First: firstPause, Max: maxPause}
	failing := false
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-o.ended:
			return nil
		case <-nodeEnded:
			c.removeSession(o)
			c.log.Info("an officer has ended", machine)
			return nil
		case <-o.wake:
		}
		if err := o.sendAll(ctx, c); err != nil {
			if !failing {
				failing = true
				c.log.Warn("sending parameters to an officer failed; retrying", machine, slog.Any("error", err))
			}
			o.notify()
			if pause.WaitOr(ctx, nodeEnded) != nil {
				return ctx.Err()
			}
			continue
		}
		pause.Reset()
		if failing {
			failing = false
			c.log.Info("sending parameters to an officer works again", machine)
		}
	}
}

func (o *officerSession) sendAll(ctx context.Context, c *captain) error {
	for _, p := range c.newestVersions() {
		tag, id := p.version.GetTag(), p.version.GetId()
		if o.sent[tag] >= id {
			continue
		}
		if _, err := o.officer.Store(ctx, &psv1.StoreRequest{Version: p.version, Parameters: p.parameters}); err != nil {
			return err
		}
		o.sent[tag] = id
	}
	return nil
}
