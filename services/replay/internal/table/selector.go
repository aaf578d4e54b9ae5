package table

import (
	"fmt"
	"math"
	"math/rand/v2"
)

// Kind is a way to choose an item of a table, to sample or to remove it.
type Kind uint8

// The kinds. The package's documentation has their distributions.
const (
	Uniform Kind = iota
	Prioritized
	FIFO
	LIFO
	Lowest
	Highest
	Epoch
	kinds
)

// String returns the kind's name.
func (k Kind) String() string {
	names := [kinds]string{"uniform", "prioritized", "fifo", "lifo", "lowest", "highest", "epoch"}
	if k < kinds {
		return names[k]
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

// Selector is a kind with its parameter.
type Selector struct {
	Kind Kind
	// Exponent is that of the priority, for Prioritized: finite and not negative.
	Exponent float64
}

// String describes the selector.
func (s Selector) String() string {
	if s.Kind == Prioritized {
		return fmt.Sprintf("prioritized(%g)", s.Exponent)
	}
	return s.Kind.String()
}

// maxMass bounds a mass, so that the sum of all is finite.
const maxMass = math.MaxFloat64 / MaxItems / 2

// minMass is the mass of a positive priority whose power would be lower. It is large enough for
// weights to be computed from it.
const minMass = 0x1p-1022

// mass returns what the probability of an item of the given priority is proportional to.
func (s Selector) mass(priority float64) float64 {
	if priority == 0 {
		return 0 // whatever the exponent
	}
	return max(math.Pow(priority, s.Exponent), minMass)
}

// maxPriority returns a priority up to which masses do not exceed maxMass.
func (s Selector) maxPriority() float64 {
	if s.Kind != Prioritized || s.Exponent == 0 {
		return math.MaxFloat64
	}
	return min(math.MaxFloat64, math.Pow(maxMass, 0.999/s.Exponent))
}

// choice is a drawn slot.
type choice struct {
	slot        uint32
	probability float64
}

// selector chooses slots. The caller reports each change.
type selector interface {
	// insert adds an item. number is higher than those of all items before it.
	insert(slot uint32, number uint64, priority float64)
	remove(slot uint32)
	update(slot uint32, priority float64)
	// any reports whether draw can choose an item.
	any() bool
	// draw draws len(dst) items one after the other, none of which is removed meanwhile.
	draw(random *rand.Rand, dst []choice)
}

// newSelector returns an empty selector.
func newSelector(s Selector) selector {
	switch s.Kind {
	case Prioritized:
		return &prioritized{Selector: s}
	case FIFO, LIFO:
		return &order{newest: s.Kind == LIFO}
	case Lowest, Highest:
		return &heap{highest: s.Kind == Highest}
	default:
		return &shuffled{epochs: s.Kind == Epoch}
	}
}

// prioritized draws with probabilities proportional to a power of the priority.
type prioritized struct {
	Selector

	tree sumTree
}

func (p *prioritized) insert(slot uint32, _ uint64, priority float64) {
	p.tree.grow(slot + 1)
	p.tree.set(slot, p.mass(priority))
}
func (p *prioritized) remove(slot uint32)                   { p.tree.set(slot, 0) }
func (p *prioritized) update(slot uint32, priority float64) { p.tree.set(slot, p.mass(priority)) }
func (p *prioritized) any() bool                            { return p.tree.total() > 0 }
func (p *prioritized) draw(random *rand.Rand, dst []choice) { p.tree.draw(random, dst) }

// shuffled draws uniformly: from all items, or from those not drawn in this epoch.
type shuffled struct {
	epochs bool
	// order has the slots of all items. The first drawn of them were drawn in this epoch.
	order, position chunks[uint32]
	size, drawn     uint32
	// epoch is how many epochs have ended.
	epoch uint64
}

func (s *shuffled) insert(slot uint32, _ uint64, _ float64) {
	s.order.grow(s.size + 1)
	s.position.grow(slot + 1)
	s.put(s.size, slot)
	s.size++
}

func (s *shuffled) put(position, slot uint32) {
	*s.order.at(position), *s.position.at(slot) = slot, position
}

func (s *shuffled) remove(slot uint32) {
	hole := *s.position.at(slot)
	if hole < s.drawn { // fill it with the last one drawn, whose place becomes the hole
		s.drawn--
		s.put(hole, *s.order.at(s.drawn))
		hole = s.drawn
	}
	s.size--
	if hole != s.size {
		s.put(hole, *s.order.at(s.size))
	}
}

func (s *shuffled) update(uint32, float64) {}
func (s *shuffled) any() bool              { return s.size > 0 }

func (s *shuffled) draw(random *rand.Rand, dst []choice) {
	if !s.epochs {
		s.drawAny(random, dst)
		return
	}
	for i := range dst {
		if s.drawn == s.size {
			s.drawn = 0
			s.epoch++
		}
		left := s.size - s.drawn
		slot := *s.order.at(s.drawn + random.Uint32N(left))
		dst[i] = choice{slot: slot, probability: 1 / float64(left)}
		s.markDrawn(slot)
	}
}

// drawAny is draw without epochs. It chooses all positions first, so that the cache misses of the
// reads that follow overlap.
func (s *shuffled) drawAny(random *rand.Rand, dst []choice) {
	probability := 1 / float64(s.size)
	for i := range dst {
		dst[i] = choice{slot: random.Uint32N(s.size), probability: probability}
	}
	for i := range dst {
		dst[i].slot = *s.order.at(dst[i].slot)
	}
}

// markDrawn moves an item to those that were drawn in this epoch.
func (s *shuffled) markDrawn(slot uint32) {
	position := *s.position.at(slot)
	s.put(position, *s.order.at(s.drawn))
	s.put(s.drawn, slot)
	s.drawn++
}

func (s *shuffled) wasDrawn(slot uint32) bool { return *s.position.at(slot) < s.drawn }

// order is the items in the order of insertion: a list whose links are slots, plus 1.
type order struct {
	newest      bool
	links       chunks[link]
	first, last uint32
}

type link struct {
	next, prev uint32
}

func (o *order) insert(slot uint32, _ uint64, _ float64) {
	o.links.grow(slot + 1)
	*o.links.at(slot) = link{prev: o.last}
	if o.last != 0 {
		o.links.at(o.last - 1).next = slot + 1
	} else {
		o.first = slot + 1
	}
	o.last = slot + 1
}

func (o *order) remove(slot uint32) {
	l := *o.links.at(slot)
	if l.prev != 0 {
		o.links.at(l.prev - 1).next = l.next
	} else {
		o.first = l.next
	}
	if l.next != 0 {
		o.links.at(l.next - 1).prev = l.prev
	} else {
		o.last = l.prev
	}
}

func (o *order) update(uint32, float64) {}
func (o *order) any() bool              { return o.first != 0 }

func (o *order) draw(_ *rand.Rand, dst []choice) {
	slot := o.first - 1
	if o.newest {
		slot = o.last - 1
	}
	for i := range dst {
		dst[i] = choice{slot: slot, probability: 1}
	}
}

// heap finds the item with the lowest or the highest priority; among equals, the oldest.
type heap struct {
	highest  bool
	entries  chunks[entry]
	position chunks[uint32]
	size     uint32
}

type entry struct {
	priority float64
	number   uint64
	slot     uint32
}

// arity is the number of children of a heap's entry.
const arity = 4

func (h *heap) insert(slot uint32, number uint64, priority float64) {
	h.entries.grow(h.size + 1)
	h.position.grow(slot + 1)
	h.size++
	h.up(h.size-1, entry{priority: priority, number: number, slot: slot})
}

func (h *heap) remove(slot uint32) {
	h.size--
	if hole := *h.position.at(slot); hole != h.size {
		h.place(hole, *h.entries.at(h.size))
	}
}

func (h *heap) update(slot uint32, priority float64) {
	position := *h.position.at(slot)
	e := *h.entries.at(position)
	e.priority = priority
	h.place(position, e)
}

func (h *heap) any() bool { return h.size > 0 }

func (h *heap) draw(_ *rand.Rand, dst []choice) {
	for i := range dst {
		dst[i] = choice{slot: h.entries.at(0).slot, probability: 1}
	}
}

func (h *heap) before(a, b entry) bool {
	if a.priority != b.priority {
		return (a.priority < b.priority) != h.highest
	}
	return a.number < b.number
}

// put stores an entry.
func (h *heap) put(position uint32, e entry) {
	*h.entries.at(position), *h.position.at(e.slot) = e, position
}

// place stores an entry at a position, or where it belongs above or below.
func (h *heap) place(position uint32, e entry) {
	if position > 0 && h.before(e, *h.entries.at((position - 1) / arity)) {
		h.up(position, e)
	} else {
		h.down(position, e)
	}
}

func (h *heap) up(position uint32, e entry) {
	for position > 0 {
		parent := (position - 1) / arity
		above := *h.entries.at(parent)
		if !h.before(e, above) {
			break
		}
		h.put(position, above)
		position = parent
	}
	h.put(position, e)
}

func (h *heap) down(position uint32, e entry) {
	for {
		best := position
		least := e
		for child := position*arity + 1; child <= position*arity+arity && child < h.size; child++ {
			if below := *h.entries.at(child); h.before(below, least) {
				best, least = child, below
			}
		}
		if best == position {
			break
		}
		h.put(position, least)
		position = best
	}
	h.put(position, e)
}
