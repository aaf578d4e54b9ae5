package ps

import (
	"context"
	"log/slog"
	"sync"

	psv1 "github.com/raylink/raylink/gen/raylink/ps/v1"
	"github.com/raylink/raylink/gen/raylink/ps/v1/psv1raylink"
)

// posting is an officer as its captain sees it. One task sends it what is new: for each tag the newest version, whatever came
// between while it was busy.
type posting struct {
	officer *psv1raylink.Officer
	request *psv1.EnlistRequest
	// sent are the versions that the officer has. Only the task uses it, once it runs.
	sent map[string]uint64
	// news has an entry when there is something to look for.
	news      chan struct{}
	dismissed chan struct{}
	once      sync.Once
}

func newPosting(officer *psv1raylink.Officer, req *psv1.EnlistRequest) *posting {
	return &posting{
		officer: officer, request: req, sent: make(map[string]uint64), news: make(chan struct{}, 1), dismissed: make(chan struct{}),
	}
}

// tell makes the task look for news.
func (o *posting) tell() {
	select {
	case o.news <- struct{}{}:
	default:
	}
}

// dismiss ends the task: another officer has come in this one's place.
func (o *posting) dismiss() { o.once.Do(func() { close(o.dismissed) }) }

// serve is the task. An officer that does not answer is tried again, and again later, until it is replaced or its node has ended. What
// goes wrong is logged once, not at each try.
func (o *posting) serve(ctx context.Context, c *captain) error {
	ctx, cancel := context.WithCancel(ctx)
	var watching sync.WaitGroup
	defer watching.Wait()
	defer cancel()
	ended := make(chan struct{})
	watching.Go(func() {
		if o.officer.Ref().Ended(ctx) == nil {
			close(ended)
		}
	})
	machine := slog.String("machine", o.request.GetMachine())
	var pause backoff
	failing := false
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-o.dismissed:
			return nil
		case <-ended:
			c.forget(o)
			c.log.Info("an officer has departed", machine)
			return nil
		case <-o.news:
		}
		if err := o.sendAll(ctx, c); err != nil {
			if !failing {
				failing = true
				c.log.Warn("an officer could not be sent parameters; it is tried again", machine, slog.Any("error", err))
			}
			o.tell()
			if err := pause.waitOr(ctx, ended); err != nil {
				return err
			}
			continue
		}
		pause.reset()
		if failing {
			failing = false
			c.log.Info("an officer is sent parameters again", machine)
		}
	}
}

func (o *posting) sendAll(ctx context.Context, c *captain) error {
	for _, p := range c.all() {
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
