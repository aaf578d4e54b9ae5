package table

import (
	"math"
	"math/rand/v2"
	"slices"
)

// fanout is the number of children of a tree's node: eight float64 are one cache line.
const fanout = 8

type node = [fanout]float64

// maxDirty bounds the nodes whose sums have yet to be added up.
const maxDirty = 1024

// sumTree draws leaves with probabilities proportional to their masses.
//
// A node's sum is always computed from its children, never corrected by a difference. So it is zero
// if and only if all leaves below are zero, and errors don't accumulate. A draw only descends to
// children whose prefix sum exceeds that of the child before, which a zero does not do. That makes
// a leaf of mass zero unreachable, whatever the rounding.
//
// Batches are processed level by level, so that their cache misses overlap: a batch of updates
// shares one pass up, a batch of draws one pass down.
type sumTree struct {
	// levels[0] has the leaves, eight to a node. The last level has one node.
	levels []chunks[node]
	size   uint32
	// dirty are nodes of level 0 whose sums the levels above do not have yet.
	dirty []uint32
	drawn []descent
	// loaded keeps the compiler from removing loads.
	loaded uint64
}

// descent is a draw on its way down.
type descent struct {
	rest float64
	node uint32
}

// grow makes room for n leaves.
func (s *sumTree) grow(n uint32) {
	if n <= s.size {
		return
	}
	s.size = n
	nodes := n
	for level := 0; level == 0 || nodes > 1; level++ {
		nodes = (nodes + fanout - 1) / fanout
		if level == len(s.levels) {
			s.levels = append(s.levels, nil)
			s.levels[level].grow(nodes)
			s.touch(0) // the old root is the first child of the new one
		}
		s.levels[level].grow(nodes)
	}
}

// mass returns a leaf's mass.
func (s *sumTree) mass(leaf uint32) float64 {
	return s.levels[0].at(leaf / fanout)[leaf%fanout]
}

// set changes a leaf's mass, which must be finite and not negative.
func (s *sumTree) set(leaf uint32, mass float64) {
	s.levels[0].at(leaf / fanout)[leaf%fanout] = mass
	s.touch(leaf / fanout)
}

// touch marks a node of level 0 whose leaves have changed.
func (s *sumTree) touch(n uint32) {
	if len(s.dirty) > 0 && s.dirty[len(s.dirty)-1] == n {
		return
	}
	if len(s.dirty) == maxDirty {
		s.settle()
	}
	s.dirty = append(s.dirty, n)
}

// settle adds up what has changed.
func (s *sumTree) settle() {
	for level := range len(s.levels) - 1 {
		below, above := s.levels[level], s.levels[level+1]
		parents := s.dirty[:0]
		for _, n := range s.dirty {
			parent := n / fanout
			above.at(parent)[n%fanout] = sum(below.at(n))
			if len(parents) == 0 || parents[len(parents)-1] != parent {
				parents = append(parents, parent)
			}
		}
		s.dirty = parents
	}
	s.dirty = s.dirty[:0]
}

// total returns the sum of all masses. It is zero if and only if they all are.
func (s *sumTree) total() float64 {
	if len(s.levels) == 0 {
		return 0
	}
	if len(s.dirty) > 0 {
		s.settle()
	}
	return sum(s.levels[len(s.levels)-1].at(0))
}

// draw draws len(dst) leaves independently. The total must be positive.
func (s *sumTree) draw(random *rand.Rand, dst []choice) {
	total := s.total()
	if cap(s.drawn) < len(dst) {
		s.drawn = make([]descent, len(dst))
	}
	drawn := s.drawn[:len(dst)]
	for i := range drawn {
		drawn[i] = descent{rest: random.Float64() * total}
	}
	for _, nodes := range slices.Backward(s.levels) {
		if len(nodes) > 1 {
			s.load(nodes, drawn)
		}
		for i := range drawn {
			d := &drawn[i]
			child, rest := descend(nodes.at(d.node), d.rest)
			d.node, d.rest = d.node*fanout+child, rest
		}
	}
	for i, d := range drawn {
		dst[i] = choice{slot: d.node, probability: s.mass(d.node) / total}
	}
}

// load loads the nodes of a level that draws have come to. The loads do not depend on each other,
// so that the processor waits for several at once. A descent is too long for that.
func (s *sumTree) load(nodes chunks[node], drawn []descent) {
	var first uint64
	for i := range drawn {
		first |= math.Float64bits(nodes.at(drawn[i].node)[0])
	}
	s.loaded = first
}

// descend returns the child of a node in which x lies, and where in it. It has no branches that
// depend on x, but for rounding.
func descend(n *node, x float64) (child uint32, rest float64) {
	var prefix [fanout + 1]float64
	prefix[1] = n[0]
	prefix[2] = prefix[1] + n[1]
	prefix[3] = prefix[2] + n[2]
	prefix[4] = prefix[3] + n[3]
	prefix[5] = prefix[4] + n[4]
	prefix[6] = prefix[5] + n[5]
	prefix[7] = prefix[6] + n[6]
	prefix[8] = prefix[7] + n[7]
	child = uint32(fanout - below(x, prefix[1]) - below(x, prefix[2]) - below(x, prefix[3]) - below(x, prefix[4]) -
		below(x, prefix[5]) - below(x, prefix[6]) - below(x, prefix[7]) - below(x, prefix[8]))
	if child < fanout {
		return child, x - prefix[child]
	}
	// x lies behind the end, by rounding: take the end of the last child that is not empty.
	for child--; n[child] == 0; child-- {
	}
	return child, math.Nextafter(n[child], 0)
}

// below returns 1 if x is below y, otherwise 0.
func below(x, y float64) uint64 { return math.Float64bits(x-y) >> 63 }

// sum returns the sum of a node's children.
func sum(n *node) float64 {
	return ((n[0] + n[1]) + (n[2] + n[3])) + ((n[4] + n[5]) + (n[6] + n[7]))
}

// priorities finds the highest and the lowest positive priority. It has those of all slots.
// Free slots have the priority zero. Like those of a sumTree, its nodes are brought up to date in
// batches, but only as far up as something changes.
type priorities struct {
	leaves chunks[node]
	levels []chunks[extremes]
	size   uint32
	// dirty are nodes of leaves whose extremes levels[0] may not have yet.
	dirty []uint32
}

// extremes are the highest and the lowest positive priority below each child of a node. Where no
// priority is positive, they are zero.
type extremes struct {
	high, low node
}

// grow makes room for n slots.
func (p *priorities) grow(n uint32) {
	if n <= p.size {
		return
	}
	p.size = n
	nodes := (n + fanout - 1) / fanout
	p.leaves.grow(nodes)
	for level := 0; level == 0 || nodes > 1; level++ {
		nodes = (nodes + fanout - 1) / fanout
		if level == len(p.levels) {
			p.settle()
			p.levels = append(p.levels, nil)
			p.levels[level].grow(nodes)
			if level > 0 { // the old root is the first child of the new one
				e, below := p.levels[level].at(0), p.levels[level-1].at(0)
				e.high[0], e.low[0] = high(&below.high), low(&below.low)
			}
		}
		p.levels[level].grow(nodes)
	}
}

// set changes the priority of a slot.
func (p *priorities) set(slot uint32, priority float64) {
	n := slot / fanout
	p.leaves.at(n)[slot%fanout] = priority
	if len(p.dirty) > 0 && p.dirty[len(p.dirty)-1] == n {
		return
	}
	if len(p.dirty) == maxDirty {
		p.settle()
	}
	p.dirty = append(p.dirty, n)
}

// settle brings the extremes up to date.
func (p *priorities) settle() {
	for i, level := range p.levels {
		changed := p.dirty[:0]
		for _, n := range p.dirty {
			highest, lowest := p.below(i, n)
			e := level.at(n / fanout)
			if e.high[n%fanout] != highest || e.low[n%fanout] != lowest {
				e.high[n%fanout], e.low[n%fanout] = highest, lowest
				changed = append(changed, n/fanout)
			}
		}
		p.dirty = changed
	}
	p.dirty = p.dirty[:0]
}

// below returns the extremes of a node below a level.
func (p *priorities) below(level int, n uint32) (highest, lowest float64) {
	if level == 0 {
		leaves := p.leaves.at(n)
		return high(leaves), low(leaves)
	}
	e := p.levels[level-1].at(n)
	return high(&e.high), low(&e.low)
}

// highest returns the highest priority, or zero.
func (p *priorities) highest() float64 {
	if len(p.levels) == 0 {
		return 0
	}
	p.settle()
	return high(&p.levels[len(p.levels)-1].at(0).high)
}

// lowest returns the lowest positive priority, or zero.
func (p *priorities) lowest() float64 {
	if len(p.levels) == 0 {
		return 0
	}
	p.settle()
	return low(&p.levels[len(p.levels)-1].at(0).low)
}

// high returns the maximum of a node. It compares the bits of the numbers, which have the same
// order because none is negative.
func high(n *node) float64 {
	x := uint64(0)
	for _, y := range n {
		x = max(x, math.Float64bits(y))
	}
	return math.Float64frombits(x)
}

// low returns the minimum of the positive numbers of a node, or zero.
func low(n *node) float64 {
	x := uint64(math.MaxUint64)
	for _, y := range n {
		x = min(x, math.Float64bits(y)-1) // zero becomes the maximum
	}
	return math.Float64frombits(x + 1)
}
