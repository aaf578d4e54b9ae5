package replaytest

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	replayv1 "github.com/raylink/raylink/gen/raylink/replay/v1"
	"github.com/raylink/raylink/internal/proctest"
	"github.com/raylink/raylink/services/replay"
)

// callLimit is the deadline of calls to a node that is stopped.
const callLimit = 200 * time.Millisecond

// bounded makes calls that need the node, which is stopped. All must end with their context.
func (l *life) bounded(id uint64) (faults []string, err error) {
	w, err := l.typed.Writer(replay.History(1))
	if err != nil {
		return nil, err
	}
	s, err := l.typed.Sampler(tableNames()[perTable], replay.BatchOf(1))
	if err != nil {
		return nil, err
	}
	calls := map[string]func(ctx context.Context) error{
		"Flush": func(ctx context.Context) error {
			appendErr := w.Append(ctx, 1, func(rows *columns) {
				content{writer: id, number: 1, life: l.number}.write(rows, 0, func() {})
			})
			if appendErr != nil {
				return fmt.Errorf("a write without the node: %w", appendErr)
			}
			item := identity{table: allTable, writer: id, first: 1, length: 1}
			_, itemErr := w.Item(ctx, tableNames()[allTable], 1, item.priority(0))
			return errors.Join(itemErr, w.Flush(ctx))
		},
		"Next": func(ctx context.Context) error {
			_, nextErr := s.Next(ctx)
			return nextErr
		},
		"Update": func(ctx context.Context) error {
			_, updateErr := s.Update(ctx, make([]replay.Key, 1), []float64{1})
			return updateErr
		},
		"Delete": func(ctx context.Context) error {
			_, deleteErr := l.typed.Client().Delete(ctx, tableNames()[perTable], make([]replay.Key, 1))
			return deleteErr
		},
		"Describe": func(ctx context.Context) error {
			_, describeErr := l.typed.Client().Handle().Describe(ctx, &replayv1.DescribeRequest{})
			return describeErr
		},
	}
	if !l.typed.Client().Mapped() {
		b, batchErr := l.typed.NewBatch(1)
		if batchErr != nil {
			return nil, batchErr
		}
		content{writer: id + 1, number: 1, life: l.number}.write(&b.Columns, 0, func() {})
		calls["Append"] = func(ctx context.Context) error {
			_, appendErr := l.typed.Client().Writer().Append(ctx, b.Batch())
			return appendErr
		}
	}
	results := make(chan string)
	for name, call := range calls {
		go func() {
			ctx, cancel := context.WithTimeout(context.Background(), callLimit)
			defer cancel()
			callErr := call(ctx)
			if callErr == nil || ctx.Err() == nil {
				results <- fmt.Sprintf("%s did not wait for the node until its context ended: %v", name, callErr)
			} else {
				results <- ""
			}
		}()
	}
	for range calls {
		if fault := <-results; fault != "" {
			faults = append(faults, fault)
		}
	}
	return faults, s.Close()
}

// TestStoppedNodeKeepsItsFile stops the node for more than a second while it is in use. No call
// outlasts its context, and no other node gets the file. When the node goes on, nothing is lost.
func TestStoppedNodeKeepsItsFile(t *testing.T) {
	c := newChecker(t)
	c.keeps = true
	c.begin()
	c.history.progress("at the beginning", c.actors)
	c.calm() // so that items of before are still there afterwards
	c.history.didf("stop the replay, process %d", c.pid)
	begin := time.Now()
	c.lost += 2 * queueBatch * len(c.actors)
	proctest.Stop(t, c.pid)
	stopped := true
	defer func() {
		if stopped { // the test has failed
			proctest.Kill(t, c.pid)
		}
	}()

	another := c.creator.Begin(order{Do: "create", File: c.file})
	answers := make([]<-chan answer, len(c.actors))
	for i, p := range c.actors {
		c.writers += 2
		answers[i] = p.Begin(order{Do: "bounded", First: c.writers})
	}
	for i, p := range c.actors {
		select {
		case a := <-answers[i]:
			require.Empty(t, a.Error, p.Name)
			require.Empty(t, a.Faults, p.Name)
		case <-time.After(callLimit + time.Second + slow):
			require.Fail(t, "hang: calls do not end with their contexts", p.Name)
		}
	}
	a := <-another
	require.Equal(t, "failed_precondition", a.Code)
	require.Regexp(t, `create a replay with the file \S+kept.ring: .*in use by the node `+c.path+` `, a.Error)
	require.Contains(t, a.Error, "end that node first, or choose another file")
	proctest.Pause(time.Until(begin.Add(time.Duration(maxAge) + time.Duration(maxAge)/4)))

	proctest.Continue(t, c.pid)
	stopped = false
	c.history.didf("continue the replay")
	c.history.progress("afterwards", c.actors)
	c.audit()
	for _, p := range c.actors {
		p.Must(c.order("start", p))
	}
	c.history.progress("after the audit", c.actors)
	c.quiet()
	c.finish()
}
