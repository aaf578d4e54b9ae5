// Package table has the tables of a replay: which runs of rows are items, in which order they are
// sampled and removed, and which calls have to wait. It knows sequence numbers, but no rows and no
// ring: its owner reports which rows were overwritten.
//
// # Items
//
// An item is one or several runs of rows, a priority and counts. It lives until it is deleted, was
// sampled as often as it may be, is removed because the table is full, or the first of its rows is
// overwritten ([Table.Expire]). Its key is never that of another item, so an update or a deletion
// that comes too late changes nothing and is counted.
//
// # Samplers and removers
//
// Both are a [Selector]. With N items of priorities p, the next draw chooses an item as follows.
//
//   - Uniform: each with probability 1/N.
//   - Prioritized: item i with probability m(i) / (m(1) + ... + m(N)), where m(i) is p(i) to the
//     power of the exponent, or 0 if p(i) is 0. So an item of priority 0 is never drawn, even if
//     the exponent is 0.
//   - FIFO, LIFO: the item that was inserted first, or last.
//   - Lowest, Highest: that with the lowest or highest priority; among equals, the one that was
//     inserted first.
//   - Epoch: each of those that were not drawn in this epoch with the same probability. When all
//     were drawn, the next epoch begins. New items join the epoch. So in an epoch an item is drawn
//     once, or not at all if it leaves the table before.
//
// Items are drawn independently of their number of rows. Draws of one call are made one after the
// other: they may have the same item several times, except in an epoch or where an item leaves the
// table after it was sampled. A remover chooses among all items when an item is inserted into a
// full table. Where a prioritized remover finds only items of priority 0, each is as likely.
//
// # Limiters
//
// A [Limiter] lets inserts and samples wait. Waiting calls of either kind are served in the order
// in which they came, as far as the limiter allows: a call that wants several items may get some of
// them and wait for more. A call is served by that which makes it possible, so what it gets can't
// be taken by another, and it wakes up once, when it is complete. Limiters that could block inserts
// and samples at once are refused.
//
// # Cost
//
// An insert, a draw, an update and a removal take O(log n) for Prioritized, Lowest and Highest,
// otherwise O(1). Expiry is O(1) per item, amortized, in whichever order items were inserted. One
// lock serves a batch. An item takes 58 bytes, and for each of sampler and remover: uniform and
// epoch 8, prioritized 9, FIFO and LIFO 8, lowest and highest 28. If both are of the same kind they
// share it, except Epoch. Further runs take 16 bytes each. None of it has pointers.
package table

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"sync"
	"time"
)

// Config describes a table.
type Config struct {
	// Name is for errors.
	Name    string
	Sampler Selector
	Remover Selector
	// MaxItems is the maximum number of items: from 1 to [MaxItems].
	MaxItems int
	// MaxSampled is how often an item can be sampled before it leaves the table; 0 is no limit.
	MaxSampled uint32
	Limiter    Limiter
	// Seed makes draws repeatable; 0 means a random seed.
	Seed uint64
}

// validate returns a [ConfigError] if there can't be such a table.
func (c *Config) validate() error {
	problem := ""
	if c.MaxItems < 1 || c.MaxItems > MaxItems {
		problem = fmt.Sprintf("its maximum number of items is %d: it must be from 1 to %d", c.MaxItems, MaxItems)
	}
	for i, s := range []Selector{c.Sampler, c.Remover} {
		role := []string{"sampler", "remover"}[i]
		switch {
		case problem != "":
		case s.Kind >= kinds:
			problem = fmt.Sprintf("its %s is unknown: %v", role, s)
		case s.Kind == Prioritized && (!(s.Exponent >= 0) || math.IsInf(s.Exponent, 0)):
			problem = fmt.Sprintf("the exponent of its %s is %g: it must be finite and not negative", role, s.Exponent)
		case s.Kind != Prioritized && s.Exponent != 0:
			problem = fmt.Sprintf("its %s %v has the exponent %g: only a prioritized one has an exponent", role, s, s.Exponent)
		}
	}
	if problem == "" {
		problem = c.Limiter.problem(c)
	}
	if problem != "" {
		return &ConfigError{Table: c.Name, Reason: problem}
	}
	return nil
}

// Counts are how many items were inserted and drawn, and why items left the table.
type Counts struct {
	Inserted, Sampled uint64
	// Overwritten items left the table because a row was overwritten. Late ones were not inserted,
	// for the same reason.
	Overwritten, Late uint64
	// Evicted items were removed from the full table. Exhausted ones were sampled as often as they
	// may be.
	Evicted, Exhausted, Deleted uint64
	// Stale is how many updates and deletions found no item. Returned is how many samples were
	// given back.
	Stale, Returned uint64
}

// Table is a table. Its methods may be called concurrently.
type Table struct {
	config Config
	began  time.Time
	// maxPriority is the highest priority that an item may have.
	maxPriority float64

	// mu guards what follows.
	mu     sync.Mutex
	random *rand.Rand
	slots  slots
	size   int
	// number is that of the last item that was inserted. Numbers up to reserved may be used.
	number, reserved uint64
	reserve          func(number uint64)
	// priorities are those of the items.
	priorities priorities
	wheel      wheel
	// remover is the same as sampler if they are alike.
	sampler, remover selector
	limit            limit
	counts           Counts
	meter            meter
	// inserters and samplers are the calls that wait.
	inserters, samplers queue
	changes             changes
	// choices and updates are memory of draws and updates.
	choices []choice
	updates []update
	// touched keeps the compiler from leaving out reads whose results are not needed.
	touched uint64
	closed  error
}

// New returns an empty table, or a [ConfigError].
func New(config Config) (*Table, error) {
	if err := config.validate(); err != nil {
		return nil, err
	}
	seed, stream := config.Seed, uint64(0)
	if seed == 0 {
		seed, stream = rand.Uint64(), rand.Uint64() //nolint:gosec // sampling needs no secrets
	}
	t := &Table{
		config:  config,
		began:   time.Now(),
		random:  rand.New(rand.NewPCG(seed, stream)), //nolint:gosec // sampling needs no secrets
		sampler: newSelector(config.Sampler),
		limit:   newLimit(config.Limiter, 0),

		maxPriority: min(config.Sampler.maxPriority(), config.Remover.maxPriority()),
	}
	t.remover = t.sampler
	if config.Remover != config.Sampler || config.Remover.Kind == Epoch {
		t.remover = newSelector(config.Remover)
	}
	return t, nil
}

// now returns the time since the table was made.
func (t *Table) now() time.Duration { return time.Since(t.began) }

// Close ends the table: calls that wait and later ones return an error that matches [ErrClosed] and
// cause, if it is not nil.
func (t *Table) Close(cause error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed != nil {
		return
	}
	t.closed = fmt.Errorf("table %q: %w", t.config.Name, ErrClosed)
	if cause != nil {
		t.closed = fmt.Errorf("table %q: %w: %w", t.config.Name, ErrClosed, cause)
	}
	t.inserters.fail(t.closed)
	t.samplers.fail(t.closed)
}

// Insert inserts items in their order, and waits where the limiter requires it. caller may name the
// caller for those that wait for it. keys gets the items' keys: a key is 0 where a row was
// overwritten already, so that there is no item. Insert returns how many items it processed: all,
// or those before the context ended ([BlockedError]) or the table was closed. An invalid item
// ([ItemError], [PriorityError]) is found before any is inserted.
//
// The items must not be modified before Insert has returned.
func (t *Table) Insert(ctx context.Context, caller string, items []Item, keys []Key) (int, error) {
	return t.insert(ctx, &waiter{op: Insert, caller: caller, items: items, keys: keys, total: len(items)})
}

// InsertReporting is Insert, except that it calls report when it begins to wait, and then up to ten
// times a second while it does. What was done by then is complete: the first keys can be read.
func (t *Table) InsertReporting(ctx context.Context, caller string, items []Item, keys []Key, report func(Blocked)) (int, error) {
	return t.insert(ctx, &waiter{op: Insert, caller: caller, items: items, keys: keys, total: len(items), report: report})
}

// TryInsert is Insert, except that it does not wait: where the limiter requires it, the error is a
// [BlockedError].
func (t *Table) TryInsert(caller string, items []Item, keys []Key) (int, error) {
	return t.insert(context.Background(), &waiter{op: Insert, try: true, caller: caller, items: items, keys: keys, total: len(items)})
}

func (t *Table) insert(ctx context.Context, w *waiter) (int, error) {
	items, keys := w.items, w.keys
	if len(keys) != len(items) {
		return 0, fmt.Errorf("insert %d items into table %q: %w: there is room for %d keys", len(items), t.config.Name, ErrArgument, len(keys))
	}
	for i := range items {
		if err := items[i].validate(i); err != nil {
			return 0, fmt.Errorf("insert into table %q: %w", t.config.Name, err)
		}
		if !items[i].Maximum {
			if err := t.validate(i, items[i].Priority); err != nil {
				return 0, fmt.Errorf("insert into table %q: %w", t.config.Name, err)
			}
		}
	}
	return t.wait(ctx, &t.inserters, w)
}

// SampleOptions are those of a sample.
type SampleOptions struct {
	// Caller may name the caller, for those that wait for it.
	Caller string
	// Beta is the exponent of the importance weights, finite and not negative. With N items of
	// probabilities P, the weight of item i is (N P(i))^-Beta, divided by the highest weight of the
	// table's items that can be drawn. So it is (min P / P(i))^Beta, which is at most 1 and does
	// not depend on the rest of the batch. Only a prioritized sampler has weights other than 1.
	Beta float64
}

// Sample draws len(dst) items, and waits where the limiter requires it. It returns how many it
// drew: all, or those before the context ended ([BlockedError]) or the table was closed. They count
// as sampled.
func (t *Table) Sample(ctx context.Context, dst []Sample, options SampleOptions) (int, error) {
	return t.sample(ctx, &waiter{op: Draw, samples: dst, total: len(dst)}, options)
}

// TrySample is Sample, except that it does not wait: where the limiter requires it, the error is a
// [BlockedError].
func (t *Table) TrySample(dst []Sample, options SampleOptions) (int, error) {
	return t.sample(context.Background(), &waiter{op: Draw, try: true, samples: dst, total: len(dst)}, options)
}

func (t *Table) sample(ctx context.Context, w *waiter, options SampleOptions) (int, error) {
	if !(options.Beta >= 0) || math.IsInf(options.Beta, 0) {
		return 0, fmt.Errorf("sample table %q: %w: the exponent of weights is %g: it must be finite and not negative",
			t.config.Name, ErrArgument, options.Beta)
	}
	w.caller, w.beta = options.Caller, options.Beta
	return t.wait(ctx, &t.samplers, w)
}

// Return gives samples back to the limiter, of items whose rows were overwritten before they could
// be read.
func (t *Table) Return(samples int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := min(uint64(max(samples, 0)), t.limit.samples)
	t.limit.samples -= n
	t.counts.Returned += n
	t.serve()
}

// Update changes the priorities of the items with the given keys, and returns how many of these
// have left the table. If a key occurs several times, its last priority counts. An invalid priority
// ([PriorityError]) is found before any is changed.
func (t *Table) Update(keys []Key, updated []float64) (stale int, err error) {
	if len(keys) != len(updated) {
		return 0, fmt.Errorf("update %d priorities of table %q: %w: there are %d keys", len(updated), t.config.Name, ErrArgument, len(keys))
	}
	for i, p := range updated {
		if err := t.validate(i, p); err != nil {
			return 0, fmt.Errorf("update priorities of table %q: %w", t.config.Name, err)
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed != nil {
		return 0, t.closed
	}
	// One pass for each structure, so that the cache misses of a pass overlap.
	t.touched = t.slots.touch(keys)
	t.updates = t.updates[:0]
	for i, key := range keys {
		slot, ok := t.slots.find(key)
		if !ok {
			stale++
			t.counts.Stale++
			continue
		}
		t.updates = append(t.updates, update{slot: slot, priority: math.Abs(updated[i])}) // -0 becomes 0
	}
	for _, u := range t.updates {
		t.setPriority(u.slot, u.priority)
	}
	for _, u := range t.updates {
		t.sampler.update(u.slot, u.priority)
	}
	if t.remover != t.sampler {
		for _, u := range t.updates {
			t.remover.update(u.slot, u.priority)
		}
	}
	for _, u := range t.updates {
		t.changes.mark(u.slot)
	}
	t.serve()
	return stale, nil
}

// Find returns the rows of the items with the given keys, in their order; none for those that have
// left the table.
func (t *Table) Find(keys []Key) ([][]Run, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed != nil {
		return nil, t.closed
	}
	found := make([][]Run, len(keys))
	for i, key := range keys {
		if slot, ok := t.slots.find(key); ok {
			it := t.slots.items.at(slot)
			found[i] = append([]Run{{First: it.first, Length: it.length}}, t.slots.more(it)...)
		}
	}
	return found, nil
}

// Delete removes the items with the given keys, and returns how many of these had left the table.
func (t *Table) Delete(keys []Key) (stale int, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed != nil {
		return 0, t.closed
	}
	for _, key := range keys {
		slot, ok := t.slots.find(key)
		if !ok {
			stale++
			t.counts.Stale++
			continue
		}
		t.remove(slot)
		t.counts.Deleted++
	}
	t.serve()
	return stale, nil
}

// Expire removes the items with rows below the given sequence number, the oldest that the ring
// still has, and returns how many. No item with such rows is inserted from then on. A lower number
// than before changes nothing.
func (t *Table) Expire(oldest uint64) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	expired := 0
	t.wheel.advance(t.slots.items, oldest, func(slot uint32) {
		t.release(slot)
		expired++
	})
	if expired == 0 {
		return 0
	}
	t.counts.Overwritten += uint64(expired)
	t.limit.overwritten(expired, t.size)
	t.serve()
	return expired
}

// SetLimiter replaces the limiter, or returns a [ConfigError] and changes nothing. Counting begins
// anew: the table's items count as just inserted, but for at most the minimum size.
func (t *Table) SetLimiter(l Limiter) error {
	if problem := l.problem(&t.config); problem != "" {
		return &ConfigError{Table: t.config.Name, Reason: problem}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed != nil {
		return t.closed
	}
	t.limit = newLimit(l, t.size)
	t.serve()
	return nil
}

// update is a new priority of an item.
type update struct {
	slot     uint32
	priority float64
}

// validate returns a [PriorityError] if an item can't have the priority.
func (t *Table) validate(index int, priority float64) error {
	return checkPriority(index, priority, t.maxPriority)
}

// Check returns the error with which Insert would refuse an item.
func (t *Table) Check(item *Item) error {
	if err := item.validate(0); err != nil || item.Maximum {
		return err
	}
	return t.validate(0, item.Priority)
}

// CheckPriority returns a [PriorityError] if the items of such a table can't have the priority.
func (c *Config) CheckPriority(index int, priority float64) error {
	return checkPriority(index, priority, min(c.Sampler.maxPriority(), c.Remover.maxPriority()))
}

func checkPriority(index int, priority, most float64) error {
	var reason string
	switch {
	case math.IsNaN(priority):
		reason = "it must be a number"
	case math.IsInf(priority, 0):
		reason = "it must be finite"
	case priority < 0:
		reason = "it must not be negative"
	case priority > most:
		reason = fmt.Sprintf("it must be at most %g, so that the sum of powers of all priorities is finite", most)
	default:
		return nil
	}
	return &PriorityError{Index: index, Priority: priority, Reason: reason}
}

// add inserts an item, and makes room for it if the table is full. It returns 0 if a row of the
// item was overwritten already.
func (t *Table) add(it *Item, now time.Duration) Key {
	if it.Run.First < t.wheel.oldest {
		t.counts.Late++
		return 0
	}
	if t.size >= t.config.MaxItems {
		t.evict()
	}
	priority := it.Priority
	if it.Maximum {
		if priority = t.priorities.highest(); priority == 0 {
			priority = 1
		}
	}
	t.counts.Inserted++
	number := t.nextNumber()
	slot := t.slots.allocate()
	*t.slots.items.at(slot) = item{
		number:  number,
		first:   it.Run.First,
		length:  it.Run.Length,
		more:    t.slots.link(it.More),
		created: int64(now),
	}
	t.place(slot, number, math.Abs(priority)) // -0 becomes 0
	t.limit.inserts++
	t.limit.resized(t.size)
	return keyOf(number, slot)
}

// nextNumber returns the number of a new item.
func (t *Table) nextNumber() uint64 {
	if t.number++; t.number<<slotBits == 0 {
		t.number++ // no key is 0
	}
	if t.number > t.reserved && t.reserve != nil {
		t.reserved = t.number + reserveStep
		t.reserve(t.reserved)
	}
	return t.number
}

// reserveStep is how many numbers are reserved at once.
const reserveStep = 1 << 12

// Reserve calls reserve before an item gets a number above those reserved until then, with the
// table's lock: it must not block. A table that is restored from a copy with such a number, or a
// higher one, in [Meta.Number] gives out no key again, not even that of an item that the copy does
// not have.
func (t *Table) Reserve(reserve func(number uint64)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.reserve, t.reserved = reserve, t.number
}

// place enters an item everywhere that depends on its rows and priority.
func (t *Table) place(slot uint32, number uint64, priority float64) {
	t.priorities.grow(slot + 1)
	t.setPriority(slot, priority)
	t.sampler.insert(slot, number, priority)
	if t.remover != t.sampler {
		t.remover.insert(slot, number, priority)
	}
	t.wheel.insert(t.slots.items, slot)
	t.size++
	t.changes.mark(slot)
}

// setPriority changes the priority of an item, but not in the selectors.
func (t *Table) setPriority(slot uint32, priority float64) {
	t.slots.items.at(slot).priority = priority
	t.priorities.set(slot, priority)
}

// evict removes the item that the remover chooses.
func (t *Table) evict() {
	t.counts.Evicted++
	if !t.remover.any() {
		t.remove(t.anywhere())
		return
	}
	var c [1]choice
	t.remover.draw(t.random, c[:])
	t.remove(c[0].slot)
}

// anywhere returns the slot of an item, each with the same probability. The table is full, so few
// slots are free.
func (t *Table) anywhere() uint32 {
	for {
		slot := t.random.Uint32N(t.slots.high)
		if t.slots.items.at(slot).number != 0 {
			return slot
		}
	}
}

// remove removes an item, other than for overwritten rows.
func (t *Table) remove(slot uint32) {
	t.wheel.remove(t.slots.items, slot)
	t.release(slot)
	t.limit.resized(t.size)
}

// release removes an item that the wheel no longer has.
func (t *Table) release(slot uint32) {
	t.sampler.remove(slot)
	if t.remover != t.sampler {
		t.remover.remove(slot)
	}
	t.priorities.set(slot, 0)
	t.slots.release(slot)
	t.size--
	t.changes.mark(slot)
}

// draw draws len(dst) items, which the limiter must allow, and none of which is removed meanwhile.
func (t *Table) draw(dst []Sample, w *waiter, now time.Duration) {
	if cap(t.choices) < len(dst) {
		t.choices = make([]choice, len(dst))
	}
	chosen := t.choices[:len(dst)]
	t.sampler.draw(t.random, chosen)
	least := 0.0
	if w.beta != 0 {
		least = t.least()
	}
	t.touch(chosen)
	for i, c := range chosen {
		it := t.slots.items.at(c.slot)
		if it.sampled < math.MaxUint32 {
			it.sampled++
		}
		weight := 1.0
		if least != 0 {
			weight = min(1, power(least/c.probability, w.beta))
		}
		dst[i] = Sample{
			Key:         keyOf(it.number, c.slot),
			Run:         Run{First: it.first, Length: it.length},
			More:        t.slots.more(it),
			Probability: c.probability,
			Weight:      weight,
			Priority:    it.priority,
			Sampled:     it.sampled,
			Size:        t.size,
			Age:         now - time.Duration(it.created),
			Held:        w.ready != nil,
		}
		t.changes.mark(c.slot)
	}
	t.limit.samples += uint64(len(dst))
	t.counts.Sampled += uint64(len(dst))
	if limit := t.maxSampled(); limit > 0 && t.slots.items.at(chosen[0].slot).sampled >= limit {
		t.remove(chosen[0].slot)
		t.counts.Exhausted++
	}
}

// power is math.Pow for a ratio up to 1, in half the time. Where the result is subnormal, math.Exp
// is wrong on amd64, by up to a factor of 1e12.
func power(ratio, exponent float64) float64 {
	const smallest = -708 // the logarithm of the smallest number that is not subnormal is -708.4
	if logarithm := exponent * math.Log(ratio); logarithm >= smallest {
		return math.Exp(logarithm)
	}
	return math.Pow(ratio, exponent)
}

// touch reads what draw needs of each item. These reads do not depend on each other, and little is
// between them, so that their cache misses overlap.
func (t *Table) touch(chosen []choice) {
	var numbers uint64
	for _, c := range chosen {
		numbers |= t.slots.items.at(c.slot).number
	}
	t.touched = numbers
}

// least returns the lowest probability of an item that can be drawn, or 0 if all have the same.
func (t *Table) least() float64 {
	p, ok := t.sampler.(*prioritized)
	if !ok {
		return 0
	}
	return p.mass(t.priorities.lowest()) / p.tree.total()
}

// maxSampled returns how often an item can be sampled, or 0.
func (t *Table) maxSampled() uint32 {
	if t.limit.once() {
		return 1
	}
	return t.config.MaxSampled
}
