package storage

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	goruntime "runtime"
	"time"

	"connectrpc.com/connect/v2"

	storagev1 "github.com/raylink/raylink/gen/raylink/storage/v1"
	"github.com/raylink/raylink/internal/backoff"
	"github.com/raylink/raylink/runtime"
	"github.com/raylink/raylink/services/storage/internal/changelog"
	"github.com/raylink/raylink/services/storage/internal/table"
)

const (
	// firstReopen and maxReopen bound the pauses between attempts to use a failed disk again.
	firstReopen = time.Second
	maxReopen   = 10 * time.Second
	// maxExpiryWait bounds how long the expiry task sleeps, because the clock may be set.
	maxExpiryWait = time.Minute
	// maxGather bounds how often a group waits for other goroutines that are ready to run.
	maxGather = 16
	// maxSpare is the number of changes in a group whose memory is kept for the next ones.
	maxSpare = 4096
	// expiryStep is how many entries are removed at once.
	expiryStep = 1000
)

// group is a group of writes that is committed at once.
type group struct {
	changes []table.Change
	removed []uint64
	// hold holds the answers of the group's calls. It is released when the group is committed, or,
	// with the reason, when it was rolled back.
	hold runtime.Hold
}

// endTurn gives back the turn of the method that runs with ctx, if it has one. The method goes on
// without a turn.
func endTurn(ctx context.Context) {
	if self := runtime.NodeFrom(ctx); self != nil {
		self.EndTurn(ctx)
	}
}

// holds has the answer of the method that runs with ctx held. It returns false if there is none to
// hold: then the method waits.
func holds(ctx context.Context, h *runtime.Hold) bool {
	self := runtime.NodeFrom(ctx)
	return self != nil && self.HoldAnswer(ctx, h)
}

// wait blocks until a group is committed. It fails with the group's error, or if ctx ends first:
// then the second result is false.
func (g *group) wait(ctx context.Context) (err error, ended bool) { //nolint:revive // the bool says what the error is
	select {
	case <-g.hold.Done():
		return g.hold.Err(), true
	default:
	}
	select {
	case <-g.hold.Done():
		return g.hold.Err(), true
	case <-ctx.Done():
		return fmt.Errorf("wait until the write is committed: %w", context.Cause(ctx)), false
	}
}

// groupOf returns the group of the provisional write with an id; nil if it is committed. The caller
// must hold n.mu.
func (n *node) groupOf(id uint64) *group {
	switch {
	case id == 0:
		return nil
	case n.committing != nil && id <= n.committing.last():
		return n.committing
	default:
		return n.pending
	}
}

func (g *group) last() uint64 { return g.changes[len(g.changes)-1].ID }

// latest returns the group of the last write; nil if that is committed. The caller must hold n.mu.
func (n *node) latest() *group {
	if n.pending != nil {
		return n.pending
	}
	return n.committing
}

// apply applies writes to the state, all or none, and returns the group in which they are
// committed; nil if they are already, in memory. The caller must hold n.mu.
func (n *node) apply(writes []table.Write) (_ *group, err error) {
	g := n.pending
	switch {
	case n.log == nil:
		g = &n.inMemory
	case g == nil:
		g = &group{changes: n.spare}
	}
	if g.changes, g.removed, err = n.table.Apply(g.changes, g.removed, writes); err != nil {
		return nil, limitOf(err)
	}
	for _, w := range writes {
		if w.Expires != 0 && w.Expires < n.nextExpiry {
			n.nextExpiry = w.Expires
			poke(n.rearm)
		}
	}
	if n.log == nil {
		n.committed(g.last())
		clear(g.changes) // they would keep values alive
		if g.changes, g.removed = g.changes[:0], g.removed[:0]; max(cap(g.changes), cap(g.removed)) > maxSpare {
			n.inMemory = group{}
		}
		return nil, nil //nolint:nilnil // there is no group to wait for
	}
	if n.pending == nil {
		n.pending, n.spare = g, nil
		poke(n.wake)
	}
	return g, nil
}

// committed shows the writes up to an id to watchers. The caller must hold n.mu.
func (n *node) committed(id uint64) {
	n.table.Committed(id)
	if n.changed != nil {
		close(n.changed)
		n.changed = nil
	}
}

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// change runs a method that writes: an operation, with the state locked. The answer of the method,
// which is final when change returns, reaches the caller when the writes, and those on which the
// operation's error depends, are as durable as the storage and the call require.
func (n *node) change(ctx context.Context, durability storagev1.Durability, op operation) error {
	if err := n.checkDurability(durability); err != nil {
		return err
	}
	n.mu.Lock()
	if n.failure != nil {
		err := writesFail(n.failure)
		n.mu.Unlock()
		return err
	}
	v := &n.view
	v.next = n.table.LastID() + 1
	var g *group
	_, err := op.apply(v)
	writes := err == nil && len(v.writes) > 0
	if writes {
		g, err = n.apply(v.writes)
	}
	v.reset()
	if g == nil {
		g = n.latest() // the result may depend on it
	}
	n.mu.Unlock()
	syncs := err == nil && writes && durability > n.durability
	if g != nil && !syncs && holds(ctx, &g.hold) {
		return err
	}
	if g != nil {
		endTurn(ctx)
		if gerr, _ := g.wait(ctx); gerr != nil {
			return gerr
		}
	}
	if syncs {
		endTurn(ctx)
		if serr := n.log.Sync(); serr != nil {
			return detailed(connect.Errorf(connect.CodeUnavailable, "the write is stored, but it is not known whether the disk has it: %v", serr).WithCause(serr),
				&storagev1.WritesFail{Cause: serr.Error()})
		}
	}
	return err
}

// read runs a method that reads. look runs with the state locked, perhaps more than once. It
// returns the id of the latest provisional write on which the result depends, or 0. read returns
// when that write is committed.
func (n *node) read(ctx context.Context, look func() (provisional uint64)) error {
	for {
		n.mu.Lock()
		g := n.groupOf(look())
		n.mu.Unlock()
		if g == nil {
			return nil
		}
		endTurn(ctx)
		switch err, ended := g.wait(ctx); {
		case err == nil:
			return nil
		case !ended:
			return err
		}
		// What was read has been rolled back.
	}
}

// checkDurability rejects what the storage can't promise.
func (n *node) checkDurability(d storagev1.Durability) error {
	switch {
	case d < 0 || d > storagev1.Durability_DURABILITY_SYNC:
		return connect.Errorf(connect.CodeInvalidArgument, "there is no durability %d; there are memory, async and sync", d)
	case n.durability == storagev1.Durability_DURABILITY_MEMORY && d > n.durability:
		return connect.NewError(connect.CodeFailedPrecondition,
			"the write is to survive the storage's process, but this storage is only in memory: configure its durability as async or sync")
	}
	return nil
}

// commit is the task that commits the groups, one at a time, until ctx has ended and no group is
// pending.
func (n *node) commit(ctx context.Context) error {
	for {
		n.gather()
		n.mu.Lock()
		g := n.pending
		n.committing, n.pending = g, nil
		n.mu.Unlock()
		if g == nil {
			select {
			case <-n.wake:
				continue
			case <-ctx.Done():
			}
			n.mu.Lock()
			over := n.pending == nil
			n.mu.Unlock()
			if over {
				return nil
			}
			continue
		}
		if err := n.commitGroup(g); err != nil {
			n.recover(ctx)
		}
	}
}

// gather lets methods run that are ready to, as long as they add writes to the pending group. The
// writes of a group share what it costs; with many callers the first one alone would be a group.
func (n *node) gather() {
	size := 0
	for range maxGather {
		n.mu.Lock()
		before := size
		if n.pending != nil {
			size = len(n.pending.changes)
		}
		n.mu.Unlock()
		if size == before {
			return
		}
		goruntime.Gosched()
	}
}

// commitGroup commits the group n.committing. If that fails, it rolls all provisional writes back.
func (n *node) commitGroup(g *group) error {
	e := &n.encoded
	e.reset()
	for _, c := range g.changes {
		e.add(c)
	}
	err := n.log.Commit(e.records, g.removed)
	n.mu.Lock()
	n.committing = nil
	last := g.last()
	if clear(g.changes); cap(g.changes) <= maxSpare {
		n.spare = g.changes[:0]
	}
	if err == nil {
		n.committed(last)
		n.mu.Unlock()
		g.hold.Release(nil)
		return nil
	}
	n.failure = err
	n.table.Rollback(n.table.CommittedID())
	pending := n.pending
	n.pending = nil
	n.mu.Unlock()
	for _, failed := range []*group{g, pending} {
		if failed != nil {
			failed.hold.Release(writesFail(err))
		}
	}
	n.logger.Error("the storage's disk failed; writes fail until it can be used again", slog.String("directory", n.directory), slog.Any("error", err))
	return err
}

// records are the records of a group. Their memory is used again for the next one.
type records struct {
	records []changelog.Record
	buffer  []byte
}

func (r *records) reset() {
	if cap(r.records) > maxSpare || cap(r.buffer) > maxSpare<<8 {
		*r = records{}
	}
	r.records, r.buffer = r.records[:0], r.buffer[:0]
}

func (r *records) add(c table.Change) {
	from := len(r.buffer)
	r.buffer = c.AppendProto(r.buffer)
	r.records = append(r.records, changelog.Record{ID: c.ID, Change: r.buffer[from:len(r.buffer):len(r.buffer)]})
}

// recover blocks until the failed disk can be used again, or until ctx ends.
func (n *node) recover(ctx context.Context) {
	n.mu.Lock()
	last := n.table.CommittedID()
	n.mu.Unlock()
	retry := backoff.Backoff{First: firstReopen, Max: maxReopen}
	for retry.Wait(ctx) == nil {
		err := n.log.Reopen(last)
		n.mu.Lock()
		n.failure = err
		n.mu.Unlock()
		if err == nil {
			n.logger.Info("the storage's disk can be used again", slog.String("directory", n.directory))
			poke(n.rearm)
			return
		}
		n.logger.Warn("the storage's disk can't be used yet", slog.String("directory", n.directory), slog.Any("error", err))
	}
}

// writesFail is the error of writes after the disk has failed.
func writesFail(cause error) error {
	code, advice := connect.CodeUnavailable, "the storage tries to use its disk again; reads go on"
	if _, ok := errors.AsType[*changelog.FullError](cause); ok {
		code, advice = connect.CodeResourceExhausted, "free space on the disk; reads go on"
	}
	return detailed(connect.Errorf(code, "writes fail because the storage's disk does: %v; %s", cause, advice).WithCause(cause),
		&storagev1.WritesFail{Cause: cause.Error()})
}

// limitOf gives an error of the table its code and detail.
func limitOf(err error) error {
	var limit *table.LimitError
	if !errors.As(err, &limit) {
		return fmt.Errorf("apply the write: %w", err)
	}
	return overLimit(connect.CodeResourceExhausted, limit.Key, string(limit.Bound), limit.Limit, limit.Needs, "%v", err)
}

// expire is the task that removes entries whose time is over, until ctx ends. Reads don't return
// such entries, even if they were not removed yet.
func (n *node) expire(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
		case <-n.rearm:
		case <-ctx.Done():
			return nil
		}
		wait, g := n.removeExpired()
		if g != nil {
			if _, ended := g.wait(ctx); !ended {
				return nil
			}
		}
		timer.Reset(wait)
	}
}

// removeExpired removes some entries whose time is over. It returns how long to wait before the
// next call, and the group of the removals.
func (n *node) removeExpired() (time.Duration, *group) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.nextExpiry = math.MaxInt64
	next, ok := n.table.NextExpiry()
	if !ok {
		return maxExpiryWait, nil
	}
	now := unixNow()
	if next > now {
		n.nextExpiry = next
		return min(time.Duration(next-now), maxExpiryWait), nil
	}
	if n.failure != nil {
		return maxExpiryWait, nil // until the disk can be used again
	}
	keys := n.table.Expired(now, expiryStep)
	writes := make([]table.Write, len(keys))
	for i, key := range keys {
		writes[i] = table.Write{Key: key, Expired: true}
	}
	g, err := n.apply(writes)
	if err != nil {
		n.logger.Error("entries whose time is over could not be removed", slog.Any("error", err))
		return maxExpiryWait, nil
	}
	return 0, g
}
