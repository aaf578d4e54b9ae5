package replaytest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"testing"
	"time"

	replayv1 "github.com/raylink/raylink/gen/raylink/replay/v1"
	"github.com/raylink/raylink/internal/proctest"
	"github.com/raylink/raylink/services/replay"
)

const (
	// agedTable is the table whose items are updated at a high rate, agedItems how many each
	// process has, and agedTogether how many of them one call updates.
	agedTable    = "aged"
	agedItems    = 4096
	agedTogether = 256
	agedCapacity = 1 << 16
)

// agedConfiguration is that of a replay whose rows are not overwritten.
func agedConfiguration(o order) *replayv1.ReplayConfig {
	return &replayv1.ReplayConfig{
		Columns: rowType().Columns(), Capacity: agedCapacity, File: o.File,
		Tables: []*replayv1.TableConfig{replay.Table(agedTable, replay.Prioritized(0.6))},
	}
}

// ager has items that nothing else changes. The priority of each is the number of the last call
// that updated it.
type ager struct {
	*life

	id      uint64
	writer  *replay.TypedWriter[columns]
	sampler *replay.Sampler[columns]
	// keys are those of the items, the first of which has the number first.
	keys    []replay.Key
	first   uint64
	version uint64
	// rows is how many were written.
	rows uint64
}

// age updates items until a call fails. A process that has mapped the ring goes on with the same
// items and heads when it is started again.
func (t *task) age(id uint64) (err error) {
	a := t.aged
	if a == nil {
		a = &ager{life: t.life, id: id}
		if a.writer, err = t.typed.Writer(replay.History(1)); err != nil {
			return err
		}
		if a.sampler, err = t.typed.Sampler(agedTable, replay.BatchOf(1)); err != nil {
			return err
		}
		t.aged = a
	} else {
		_ = a.writer.Flush(t.ctx) // returns what was lost with the node before
	}
	for t.ctx.Err() == nil {
		if err := a.turn(t); err != nil {
			if t.ctx.Err() == nil {
				t.tell(fail(answer{Event: releasedEvent}, err))
			}
			<-t.ctx.Done()
		}
	}
	return nil
}

// turn makes one call.
func (a *ager) turn(t *task) error {
	switch n := len(a.keys); {
	case n < agedItems:
		return a.insert(t, 64)
	case t.random.IntN(32) == 0:
		return a.remove(t, 8)
	default:
		at := t.random.IntN(n - agedTogether + 1)
		return a.update(t, at)
	}
}

func (a *ager) insert(t *task, n int) error {
	begin := clock()
	pending := make([]*replay.PendingKey, n)
	entries := make([]entry, n)
	for i := range pending {
		a.rows++
		err := a.writer.Append(t.ctx, 1, func(rows *columns) {
			content{writer: a.id, number: a.rows, life: a.number}.write(rows, 0, func() {})
		})
		if err == nil {
			pending[i], err = a.writer.Item(t.ctx, agedTable, 1, 0)
		}
		if err != nil {
			return err
		}
	}
	flushErr := a.writer.Flush(t.ctx)
	end := clock()
	for i, p := range pending {
		key, confirmed := p.Get()
		if !confirmed {
			return errors.Join(flushErr, a.record.add(entries[:i]...))
		}
		entries[i] = entry{
			Kind: itemEntry, Life: a.number, Writer: a.id, Number: a.first + uint64(len(a.keys)), Key: key.Number(), Begin: begin, End: end,
		}
		a.keys = append(a.keys, key)
		t.count.Add(1)
	}
	return errors.Join(flushErr, a.record.add(entries...))
}

func (a *ager) update(t *task, at int) error {
	a.version++
	priorities := make([]float64, agedTogether)
	for i := range priorities {
		priorities[i] = float64(a.version)
	}
	e := entry{Kind: updateEntry, Life: a.number, Writer: a.id, Number: a.first + uint64(at), Count: agedTogether, Version: a.version}
	err := t.recorded([]entry{e}, func() error {
		_, err := a.sampler.Update(t.ctx, a.keys[at:at+agedTogether], priorities)
		return err
	})
	t.count.Add(agedTogether)
	return err
}

// remove deletes the first items.
func (a *ager) remove(t *task, n int) error {
	keys := a.keys[:n]
	e := entry{Kind: deleteEntry, Life: a.number, Writer: a.id, Number: a.first, Count: uint64(n)}
	a.keys, a.first = a.keys[n:], a.first+uint64(n)
	return t.recorded([]entry{e}, func() error {
		_, err := a.typed.Client().Delete(t.ctx, agedTable, keys)
		return err
	})
}

// agedItem is one that was acknowledged.
type agedItem struct {
	entry    entry
	deleted  bool
	there    bool
	priority float64
}

// ages compares the items, which do not change, with the records. It returns how old they were when
// the node was killed for the last time.
func (l *life) ages(ctx context.Context, kills []killed) (faults []string, text string, err error) {
	priorities := make(map[uint64]float64)
	for item, err := range l.typed.Client().Items(ctx, agedTable) {
		if err != nil {
			return nil, "", err
		}
		priorities[item.Key.Number()] = item.Priority
	}
	items := make(map[[2]uint64]*agedItem)
	changes, oldest := 0, int64(0)
	last := kills[len(kills)-1]
	before := killed{}
	if len(kills) > 1 {
		before = kills[len(kills)-2]
	}
	// lost is called with what is not there, though it was acknowledged.
	lost := func(what string, begin, end int64, e *agedItem) {
		age := last.From - end
		if begin > before.To && begin <= last.To {
			if oldest = max(oldest, age); age <= maxAge+last.Stalled {
				return
			}
		} else if !survives(kills, begin, end) {
			return
		}
		if len(faults) < 10 {
			faults = append(faults, fmt.Sprintf("%s of %v before the node was killed is lost: %+v", what, time.Duration(age), *e))
		}
	}
	open := make(map[uint64]entry)
	passes := []func(e *entry){
		func(e *entry) {
			if e.Kind == itemEntry {
				item := &agedItem{entry: *e}
				item.priority, item.there = priorities[e.Key]
				items[[2]uint64{e.Writer, e.Number}] = item
			}
		},
		func(e *entry) {
			switch e.Kind {
			case updateEntry, deleteEntry:
				open[e.Call] = *e
				for i := e.Number; e.Kind == deleteEntry && i < e.Number+e.Count; i++ {
					if item := items[[2]uint64{e.Writer, i}]; item != nil {
						item.deleted = true
					}
				}
			case doneEntry:
				call := open[e.Call]
				delete(open, e.Call)
				changes += int(call.Count)
				for i := call.Number; i < call.Number+call.Count; i++ {
					item := items[[2]uint64{call.Writer, i}]
					switch {
					case item == nil || !item.there:
					case call.Kind == deleteEntry:
						lost("a deletion", e.Begin, e.End, item)
					case float64(call.Version) > item.priority:
						lost("an update", e.Begin, e.End, item)
					}
				}
			}
		},
	}
	for _, visit := range passes {
		if err := visitRecords(os.Getenv(records), l.number, visit); err != nil {
			return nil, "", err
		}
	}
	for _, item := range items {
		if !item.there && !item.deleted {
			lost("an item", item.entry.Begin, item.entry.End, item)
		}
	}
	return faults, fmt.Sprintf("%d items of %d that were acknowledged, and %d changes; the file was %v old",
		len(priorities), len(items), changes, time.Duration(oldest)), nil
}

// stalls measures how long the machine may keep a process that is ready to run from running, until
// the function that it returns is called.
func stalls() (most func() time.Duration) {
	const interval = 5 * time.Millisecond
	end, result := make(chan struct{}), make(chan time.Duration)
	go func() {
		longest, last := time.Duration(0), time.Now()
		for {
			select {
			case <-time.After(interval):
				longest, last = max(longest, time.Since(last)-interval), time.Now()
			case <-end:
				result <- longest
				return
			}
		}
	}()
	return func() time.Duration {
		close(end)
		return 4 * <-result // the node has several threads
	}
}

// TestItemsAreAtMostASecondOld kills the node while items are updated, inserted and deleted as fast
// as processes can. Those whose calls were acknowledged a second before are as they were then.
func TestItemsAreAtMostASecondOld(t *testing.T) {
	c := newCheckerOf(t, []string{"age"}, actorRole, actorRole, remoteRole)
	c.keeps, c.aged = true, true
	c.begin()
	for range min(*kills, 2) {
		c.history.await(*stuck, "hang: items are not updated", func() bool {
			for _, p := range c.actors {
				if c.history.counts[p.Name]["age"] < agedItems+agedTogether { // it has inserted all
					return false
				}
			}
			return true
		})
		most, before, begin := stalls(), c.done("age"), time.Now()
		proctest.Pause(time.Duration(maxAge) / 2)
		c.pause(time.Duration(maxAge))
		rate := float64(c.done("age")-before) / time.Since(begin).Seconds()
		c.killNode(most)
		c.create()
		for _, p := range c.actors {
			p.Must(order{Do: "quiet"})
		}
		c.forget(c.actors...)
		a := c.inspector.Must(order{Do: "ages", Kills: c.nodeKills})
		t.Logf("%.0f changes/s: %s", rate, a.Text)
		if len(a.Faults) > 0 {
			t.Fatalf("%q", a.Faults)
		}
		for _, p := range c.actors {
			if p.role == remoteRole {
				c.reopen(p)
			} else {
				p.Must(c.order("start", p))
			}
		}
	}
	c.history.progress("with the last node", c.actors)
	c.leave(false)
	c.creator.Must(order{Do: "end", Path: c.path})
}
