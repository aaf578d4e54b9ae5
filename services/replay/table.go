package replay

import (
	"context"
	"errors"
	"fmt"

	replayv1 "github.com/raylink/raylink/gen/raylink/replay/v1"
	"github.com/raylink/raylink/services/replay/internal/table"
	"github.com/raylink/raylink/services/replay/ring"
)

// Errors of tables. They are returned wrapped: compare with [errors.Is].
var (
	// ErrTable means that the replay has no table of this name.
	ErrTable = errors.New("no such table")
	// ErrKey means that a table has no item with a key: it left the table, or never was in it.
	ErrKey = errors.New("no such item")
	// ErrLimiter means that a limiter can't work in the table, because it could only deadlock.
	ErrLimiter = table.ErrConfig
	// ErrItem means that an item can't be inserted.
	ErrItem = table.ErrItem
	// ErrPriority means that a priority is negative, not finite or too high.
	ErrPriority = table.ErrPriority
	// ErrBlocked means that a context ended while a limiter made a call wait.
	ErrBlocked = table.ErrBlocked
	// ErrChanged means that a row was changed as often as possible: 4,095 times.
	ErrChanged = ring.ErrChanged
	// ErrArgument means that the arguments of a call do not fit together.
	ErrArgument = table.ErrArgument
)

// TableOption configures a table.
type TableOption interface {
	apply(config *replayv1.TableConfig)
}

// Table returns the configuration of a table, for [replayv1.ReplayConfig]. By default it samples
// uniformly, has a million items at most and then removes the one that was inserted first, and lets
// samples wait while it is empty. docs/replay.md states what the options mean.
func Table(name string, options ...TableOption) *replayv1.TableConfig {
	config := &replayv1.TableConfig{Name: name}
	for _, o := range options {
		o.apply(config)
	}
	return config
}

// Selector is a way to choose an item. As an option, it is the table's sampler.
type Selector struct {
	kind     replayv1.SelectorKind
	exponent float64
}

func (s Selector) message() *replayv1.Selector {
	return &replayv1.Selector{Kind: s.kind, Exponent: s.exponent}
}

func (s Selector) apply(config *replayv1.TableConfig) { config.Sampler = s.message() }

// Uniform chooses each item with the same probability.
func Uniform() Selector { return Selector{kind: replayv1.SelectorKind_SELECTOR_KIND_UNIFORM} }

// Prioritized chooses items with probabilities proportional to a power of their priority, and never
// one of priority 0.
func Prioritized(exponent float64) Selector {
	return Selector{kind: replayv1.SelectorKind_SELECTOR_KIND_PRIORITIZED, exponent: exponent}
}

// FIFO chooses the item that was inserted first.
func FIFO() Selector { return Selector{kind: replayv1.SelectorKind_SELECTOR_KIND_FIFO} }

// LIFO chooses the item that was inserted last.
func LIFO() Selector { return Selector{kind: replayv1.SelectorKind_SELECTOR_KIND_LIFO} }

// Lowest chooses the item with the lowest priority; among equals, the one that was inserted first.
func Lowest() Selector { return Selector{kind: replayv1.SelectorKind_SELECTOR_KIND_LOWEST} }

// Highest chooses the item with the highest priority; among equals, the one that was inserted
// first.
func Highest() Selector { return Selector{kind: replayv1.SelectorKind_SELECTOR_KIND_HIGHEST} }

// Epoch chooses uniformly without replacement: each item once, until all were chosen.
func Epoch() Selector { return Selector{kind: replayv1.SelectorKind_SELECTOR_KIND_EPOCH} }

type option func(config *replayv1.TableConfig)

func (o option) apply(config *replayv1.TableConfig) { o(config) }

// Remover chooses the item that is removed when one is inserted into the full table.
func Remover(s Selector) TableOption {
	return option(func(config *replayv1.TableConfig) { config.Remover = s.message() })
}

// MaxItems is the maximum number of items.
func MaxItems(n uint64) TableOption {
	return option(func(config *replayv1.TableConfig) { config.MaxItems = n })
}

// MaxSampled is how often an item can be sampled before it leaves the table.
func MaxSampled(times uint32) TableOption {
	return option(func(config *replayv1.TableConfig) { config.MaxSampled = times })
}

// Limiter decides which inserts and samples have to wait. As an option, it is the table's limiter.
type Limiter struct{ message *replayv1.Limiter }

func (l Limiter) apply(config *replayv1.TableConfig) { config.Limiter = l.message }

// MinSize lets samples wait while the table has fewer items.
func MinSize(items uint64) Limiter { return Limiter{&replayv1.Limiter{MinSize: items}} }

// SamplesPerInsert keeps the number of samples near ratio times the number of inserts, once the
// table has minSize items: up to buffer samples more or less.
func SamplesPerInsert(ratio float64, minSize uint64, buffer float64) Limiter {
	return Limiter{&replayv1.Limiter{
		Rule: replayv1.LimiterRule_LIMITER_RULE_SAMPLES_PER_INSERT, MinSize: minSize, SamplesPerInsert: ratio, Buffer: buffer,
	}}
}

// Queue makes a table with the sampler FIFO a bounded queue: each item is sampled once, and inserts
// wait while it has as many items as its capacity.
func Queue(capacity uint64) Limiter {
	return Limiter{&replayv1.Limiter{Rule: replayv1.LimiterRule_LIMITER_RULE_QUEUE, Capacity: capacity}}
}

// Stack is a Queue for the sampler LIFO.
func Stack(capacity uint64) Limiter {
	return Limiter{&replayv1.Limiter{Rule: replayv1.LimiterRule_LIMITER_RULE_STACK, Capacity: capacity}}
}

// Delete removes items from a table, and returns how many of these had left the table, or were
// items of an earlier incarnation of the replay: their deletion changes nothing. Their rows stay in
// the ring. An unknown table is an error that matches [ErrTable].
func (c *Client) Delete(ctx context.Context, tableName string, keys []Key) (stale int, err error) {
	if err := c.callable(ctx); err != nil {
		return 0, fmt.Errorf("delete %d items of table %q: %w", len(keys), tableName, err)
	}
	requests := map[string]*replayv1.DeleteItemsRequest{}
	if len(keys) == 0 {
		requests[""] = &replayv1.DeleteItemsRequest{Table: tableName} // so that the table's name is checked
	}
	for _, key := range keys {
		req := requests[key.ring]
		if req == nil {
			req = &replayv1.DeleteItemsRequest{Table: tableName, RingId: key.ring}
			requests[key.ring] = req
		}
		req.Keys = append(req.Keys, key.in(tableName))
	}
	for _, req := range requests {
		res, deleteErr := c.Handle().DeleteItems(ctx, req)
		stale += int(res.GetStale()) //nolint:gosec // at most the number of keys
		err = errors.Join(err, ringError(deleteErr))
	}
	if err != nil {
		return stale, fmt.Errorf("delete %d items of table %q: %w", len(keys), tableName, err)
	}
	return stale, nil
}

// SetLimiter replaces the limiter of a table, for example by [MinSize] or [SamplesPerInsert].
// Counting begins anew, as though the table's items had just been inserted, and calls that wait go
// on as far as the new limiter lets them. One that could only deadlock is an error that matches
// [ErrLimiter] and says why; an unknown table is one that matches [ErrTable]. Nothing is changed
// then.
func (c *Client) SetLimiter(ctx context.Context, tableName string, limiter Limiter) error {
	err := c.callable(ctx)
	if err == nil {
		_, err = c.Handle().SetLimiter(ctx, &replayv1.SetLimiterRequest{Table: tableName, Limiter: limiter.message})
	}
	if err != nil {
		return fmt.Errorf("set the limiter of table %q: %w", tableName, ringError(err))
	}
	return nil
}
