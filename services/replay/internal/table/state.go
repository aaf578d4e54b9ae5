package table

import (
	"cmp"
	"fmt"
	"iter"
	"math"
	"math/bits"
	"slices"
	"time"
)

// State is all that a table has of an item, for a copy of the table.
type State struct {
	// Slot is the item's slot. Number is its number, from 1, or 0 if the slot is free: then the
	// rest is zero.
	Slot   uint32
	Number uint64
	Run    Run
	More   []Run
	// Priority is the item's, Sampled how often it was sampled.
	Priority float64
	Sampled  uint32
	// Drawn means that the item was drawn in the sampler's epoch, which is that number.
	Drawn bool
	Epoch uint64
	Age   time.Duration
}

// Key returns the item's key.
func (s *State) Key() Key { return keyOf(s.Number, s.Slot) }

// Meta is what a copy of a table has beside its items.
type Meta struct {
	Counts Counts
	// Limiter is the limiter in use. Difference is how many samples are due, and Lost how many
	// overwritten items count towards the minimum size.
	Limiter    Limiter
	Difference float64
	Lost       int
	// Oldest is the sequence number of the oldest row at the last Expire.
	Oldest uint64
	// Number is that of the last item that was inserted.
	Number uint64
	// Epoch is that of the sampler. Items that were drawn in earlier ones count as not drawn.
	Epoch uint64
}

// Meta returns the table's counts and the limiter's state.
func (t *Table) Meta() Meta {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.meta()
}

func (t *Table) meta() Meta {
	m := Meta{
		Counts: t.counts, Limiter: t.limit.Limiter, Difference: t.limit.difference(), Lost: t.limit.lost,
		Oldest: t.wheel.oldest, Number: t.number,
	}
	if e := t.epochs(); e != nil {
		m.Epoch = e.epoch
	}
	return m
}

// Items fills states with items in the order of their slots, from the given one. It returns how
// many and where the next call should go on; fewer than len(states) are the last ones.
//
// So several calls list the table while it is used. Each item is as it was at one time. One that is
// in the table all the time is listed once, others once or not at all.
func (t *Table) Items(from uint32, states []State) (n int, next uint32) {
	for more := true; more; {
		n, from, more = t.someItems(from, states, n)
	}
	return n, from
}

// visited bounds the slots that are visited without releasing the lock.
const visited = 1 << 16

// someItems goes on with Items after n items, and reports whether there may be more.
func (t *Table) someItems(from uint32, states []State, n int) (_ int, next uint32, more bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now, end := t.now(), min(uint64(from)+visited, uint64(t.slots.high))
	for ; n < len(states) && uint64(from) < end; from++ {
		if t.slots.items.at(from).number != 0 {
			states[n] = t.state(from, now)
			n++
		}
	}
	return n, from, n < len(states) && from < t.slots.high
}

// Len returns the number of items.
func (t *Table) Len() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.size
}

// Get returns the state of an item, and whether it is in the table.
func (t *Table) Get(key Key) (State, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	slot, ok := t.slots.find(key)
	if !ok {
		return State{}, false
	}
	return t.state(slot, t.now()), true
}

func (t *Table) state(slot uint32, now time.Duration) State {
	it := t.slots.items.at(slot)
	if it.number == 0 {
		return State{Slot: slot}
	}
	s := State{
		Slot: slot, Number: it.number, Run: Run{First: it.first, Length: it.length}, More: t.slots.more(it),
		Priority: it.priority, Sampled: it.sampled, Age: now - time.Duration(it.created),
	}
	if e := t.epochs(); e != nil && e.wasDrawn(slot) {
		s.Drawn, s.Epoch = true, e.epoch
	}
	return s
}

// epochs returns a sampler that has epochs, or nil.
func (t *Table) epochs() *shuffled {
	if e, ok := t.sampler.(*shuffled); ok && e.epochs {
		return e
	}
	return nil
}

// changes has a bit for each slot that has changed.
type changes struct {
	tracked bool
	bits    []uint64
	// next is the word at which the search goes on.
	next int
}

func (c *changes) mark(slot uint32) {
	if !c.tracked {
		return
	}
	for int(slot/64) >= len(c.bits) {
		c.bits = append(c.bits, 0)
	}
	c.bits[slot/64] |= 1 << (slot % 64)
}

// Track makes the table remember which slots change from now on, for Changes. It takes a bit per
// slot.
func (t *Table) Track() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.changes.tracked = true
}

// Changes fills states with slots that have changed since they were last returned, and returns how
// many. Fewer than len(states) are all of them. A copy of the table to which they are applied has
// each item as it was at one time since then.
//
// A change of Drawn is only returned if the item was drawn: when an epoch ends, no item changes,
// but the epoch of [Table.Meta] does.
func (t *Table) Changes(states []State) int {
	n, _ := t.ChangesAndMeta(states)
	return n
}

// ChangesAndMeta is [Table.Changes] and [Table.Meta] at one time. After a call that returned all
// changes, a copy to which they and those before are applied is the table as it was at that time.
func (t *Table) ChangesAndMeta(states []State) (int, Meta) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.collect(states), t.meta()
}

// collect is Changes with mu.
func (t *Table) collect(states []State) int {
	now, n := t.now(), 0
	c := &t.changes
	for range c.bits {
		if c.next >= len(c.bits) {
			c.next = 0
		}
		word := &c.bits[c.next]
		for ; *word != 0; *word &= *word - 1 {
			if n == len(states) {
				return n
			}
			states[n] = t.state(uint32(64*c.next+bits.TrailingZeros64(*word)), now) //nolint:gosec // below MaxItems
			n++
		}
		c.next++
	}
	return n
}

// Restore returns a table with the given items, which have their keys. The configuration counts: if
// it has other selectors or fewer items, the remover chooses those that leave. A limiter equal to
// that of the configuration goes on where it was; another begins anew. An invalid state is an
// [ItemError], whose index is that of the item in the sequence.
func Restore(config Config, meta Meta, items iter.Seq[State]) (*Table, error) {
	t, err := New(config)
	if err != nil {
		return nil, err
	}
	if math.IsNaN(meta.Difference) || math.IsInf(meta.Difference, 0) {
		return nil, fmt.Errorf("restore table %q: %w: its limiter's difference is %g", config.Name, ErrArgument, meta.Difference)
	}
	t.counts, t.wheel.oldest, t.number = meta.Counts, meta.Oldest, meta.Number
	var keys []Key
	var drawn []uint32
	for s := range items {
		if err := t.restore(&s, len(keys)); err != nil {
			return nil, fmt.Errorf("restore table %q: %w", config.Name, err)
		}
		keys = append(keys, s.Key())
		if s.Drawn && s.Epoch == meta.Epoch {
			drawn = append(drawn, s.Slot)
		}
	}
	t.enter(keys)
	if e := t.epochs(); e != nil {
		e.epoch = meta.Epoch
		for _, slot := range drawn {
			e.markDrawn(slot)
		}
	}
	for t.size > config.MaxItems {
		t.evict()
	}
	t.limit = newLimit(config.Limiter, t.size)
	if before := newLimit(meta.Limiter, 0); before.Limiter == t.limit.Limiter {
		t.limit.offset = meta.Difference
		t.limit.overwritten(max(meta.Lost, 0), t.size)
	}
	return t, nil
}

// restore stores an item in its slot. The caller enters it elsewhere.
func (t *Table) restore(s *State, index int) error {
	it := Item{Run: s.Run, More: s.More, Priority: s.Priority}
	if err := it.validate(index); err != nil {
		return err
	}
	if err := t.validate(index, s.Priority); err != nil {
		return err
	}
	switch {
	case s.Slot >= MaxItems:
		return &ItemError{Index: index, Reason: fmt.Sprintf("its slot is %d, and there are %d", s.Slot, MaxItems)}
	case s.Key() == 0 || s.Number == 0 || s.Number > t.number:
		return &ItemError{Index: index, Reason: fmt.Sprintf("its number is %d, and that of the last item is %d", s.Number, t.number)}
	case s.Run.First < t.wheel.oldest:
		return &ItemError{Index: index, Reason: fmt.Sprintf("its first row is %d, and those below %d were overwritten", s.Run.First, t.wheel.oldest)}
	}
	t.slots.items.grow(s.Slot + 1)
	t.slots.high = max(t.slots.high, s.Slot+1)
	stored := t.slots.items.at(s.Slot)
	if stored.number != 0 {
		return &ItemError{Index: index, Reason: fmt.Sprintf("its slot %d is that of another item", s.Slot)}
	}
	*stored = item{
		number: s.Number, first: s.Run.First, length: s.Run.Length, more: t.slots.link(s.More),
		created: int64(t.now() - s.Age), sampled: s.Sampled, priority: math.Abs(s.Priority),
	}
	return nil
}

// enter enters restored items into the selectors, in the order of their insertion, and collects the
// free slots.
func (t *Table) enter(keys []Key) {
	slices.SortFunc(keys, func(a, b Key) int {
		return cmp.Compare(t.slots.items.at(a.slot()).number, t.slots.items.at(b.slot()).number)
	})
	for _, key := range keys {
		slot := key.slot()
		it := t.slots.items.at(slot)
		t.place(slot, it.number, it.priority)
	}
	for slot := t.slots.high; slot > 0; slot-- {
		if it := t.slots.items.at(slot - 1); it.number == 0 {
			it.next = t.slots.free
			t.slots.free = slot
		}
	}
}
