package table

import (
	"fmt"
	"math"
)

// Rule is a way to limit inserts and samples.
type Rule uint8

// The rules.
const (
	// AtLeast lets samples wait until the table has MinSize items.
	AtLeast Rule = iota
	// PerInsert also keeps the number of samples near Ratio times the number of inserts.
	PerInsert
	// Queue lets inserts wait while the table has Capacity items, and samples while it has none.
	// Each item is sampled once, the oldest first. Stack is the same, with the newest first.
	Queue
	Stack
)

// Limiter decides which inserts and samples have to wait. The zero value is MinSize(1).
type Limiter struct {
	Rule Rule
	// MinSize is the number of items that a table needs before they are sampled; 0 means 1. Items
	// whose rows were overwritten count, while the table has too few: the ring has no room for
	// more.
	MinSize int
	// Ratio is the number of samples per insert, and Buffer how many samples there may be more or
	// less than that.
	Ratio, Buffer float64
	// Capacity is that of a queue or a stack.
	Capacity int
}

// MinSize returns a limiter that only has a minimum size.
func MinSize(items int) Limiter { return Limiter{MinSize: items} }

// SamplesPerInsert returns a limiter of the rule PerInsert.
func SamplesPerInsert(ratio float64, minSize int, buffer float64) Limiter {
	return Limiter{Rule: PerInsert, MinSize: minSize, Ratio: ratio, Buffer: buffer}
}

// QueueOf returns the limiter of a queue.
func QueueOf(capacity int) Limiter { return Limiter{Rule: Queue, Capacity: capacity} }

// StackOf returns the limiter of a stack.
func StackOf(capacity int) Limiter { return Limiter{Rule: Stack, Capacity: capacity} }

// String describes the limiter.
func (l Limiter) String() string {
	switch l.Rule {
	case PerInsert:
		return fmt.Sprintf("samples per insert(%g, minimum size %d, buffer %g)", l.Ratio, l.MinSize, l.Buffer)
	case Queue:
		return fmt.Sprintf("queue(%d)", l.Capacity)
	case Stack:
		return fmt.Sprintf("stack(%d)", l.Capacity)
	default:
		return fmt.Sprintf("minimum size(%d)", l.MinSize)
	}
}

// once reports whether each item is sampled once.
func (l Limiter) once() bool { return l.Rule == Queue || l.Rule == Stack }

// problem returns why the limiter can't work in a table of this configuration, or "".
func (l Limiter) problem(c *Config) string {
	switch {
	case l.Rule > Stack:
		return fmt.Sprintf("the limiter's rule %d is unknown", l.Rule)
	case l.MinSize < 0:
		return fmt.Sprintf("the limiter's minimum size is %d: it must be positive", l.MinSize)
	case l.MinSize > c.MaxItems:
		return fmt.Sprintf("the limiter would deadlock: it lets samples wait for %d items, and the table has room for %d", l.MinSize, c.MaxItems)
	case l.Rule != PerInsert && (l.Ratio != 0 || l.Buffer != 0):
		return fmt.Sprintf("the limiter %v has a ratio of %g and a buffer of %g: only one of samples per insert has them", l, l.Ratio, l.Buffer)
	case l.once():
		return l.queueProblem(c)
	case l.Rule == PerInsert:
		return l.ratioProblem(c)
	}
	return ""
}

func (l Limiter) queueProblem(c *Config) string {
	want := FIFO
	if l.Rule == Stack {
		want = LIFO
	}
	switch {
	case l.Capacity < 1 || l.Capacity > c.MaxItems:
		return fmt.Sprintf("the limiter %v needs a capacity from 1 to %d, the table's maximum number of items", l, c.MaxItems)
	case l.MinSize > l.Capacity:
		return fmt.Sprintf("the limiter would deadlock: it lets samples wait for %d items, and its capacity is %d", l.MinSize, l.Capacity)
	case c.Sampler.Kind != want:
		return fmt.Sprintf("the limiter %v needs the sampler %v, not %v", l, want, c.Sampler)
	case c.MaxSampled > 1:
		return fmt.Sprintf("the limiter %v lets each item be sampled once, not %d times", l, c.MaxSampled)
	}
	return ""
}

// ratioProblem returns why a limiter of the rule PerInsert can't work.
//
// The difference between Ratio times the inserts and the samples has to stay in an interval of
// twice the buffer's width. An insert adds Ratio to it, a sample subtracts 1. If the interval is
// narrower than both together, the difference can be where neither fits.
func (l Limiter) ratioProblem(c *Config) string {
	switch {
	case !(l.Ratio > 0) || math.IsInf(l.Ratio, 0):
		return fmt.Sprintf("the limiter's samples per insert are %g: they must be positive and finite", l.Ratio)
	case !(l.Buffer >= 0) || math.IsInf(l.Buffer, 0):
		return fmt.Sprintf("the limiter's buffer is %g samples: it must be positive and finite", l.Buffer)
	case 2*l.Buffer < 1+l.Ratio:
		return fmt.Sprintf("the limiter would deadlock: with %g samples per insert, a buffer of %g samples can block an insert and a sample at once; "+
			"it needs at least %g", l.Ratio, l.Buffer, (1+l.Ratio)/2)
	case c.MaxSampled > 0 && float64(c.MaxSampled) < l.Ratio:
		return fmt.Sprintf("the limiter can't be met: it lets inserts wait for %g samples each, and an item can be sampled %d times at most",
			l.Ratio, c.MaxSampled)
	}
	return ""
}

// tolerance is what rounding may add to a difference, in samples and inserts. A call that rounding
// alone would block is let through.
const tolerance = 1e-6

// limit is a limiter's state.
//
// An insert and a sample are never blocked at the same time, if the table's items can be drawn:
// inserts only wait once samples do not wait for the minimum size, and ratioProblem excludes the
// rest.
type limit struct {
	Limiter

	// offset is added to the difference, since the counts began elsewhere.
	offset           float64
	inserts, samples uint64
	// lost is the number of items that left the table because their rows were overwritten, and
	// that count towards the minimum size. With them the table has at most MinSize.
	lost int
}

// newLimit returns the state of a limiter that begins with a table of the given size: as though its
// items had just been inserted, but with at most the difference of the buffer's middle.
func newLimit(l Limiter, size int) limit {
	l.MinSize = max(l.MinSize, 1)
	return limit{Limiter: l, offset: l.Ratio * float64(min(size, l.MinSize))}
}

// minimum reports whether the minimum size is reached.
func (l *limit) minimum(size int) bool { return size+l.lost >= l.MinSize }

// overwritten counts items that left the table because their rows were overwritten. size is the
// number of those left.
func (l *limit) overwritten(items, size int) {
	l.lost = max(0, min(l.lost+items, l.MinSize-size))
}

// resized notes another change of size.
func (l *limit) resized(size int) {
	if size == 0 {
		l.lost = 0
	}
	l.overwritten(0, size)
}

// difference is how many samples are due.
func (l *limit) difference() float64 {
	return l.offset + l.Ratio*float64(l.inserts) - float64(l.samples)
}

// bounds are the lowest and the highest difference.
func (l *limit) bounds() (low, high float64) {
	middle := l.Ratio * float64(l.MinSize)
	return middle - l.Buffer, middle + l.Buffer
}

// canSample returns how many of n samples need not wait.
func (l *limit) canSample(n, size int, drawable bool) int {
	switch {
	case !drawable || !l.minimum(size):
		return 0
	case l.Rule == PerInsert:
		low, _ := l.bounds()
		return floor(l.difference()-low, n)
	}
	return n
}

// canInsert returns how many of n inserts need not wait.
func (l *limit) canInsert(n, size int, drawable bool) int {
	switch {
	case l.once():
		return max(0, min(n, l.Capacity-size))
	case !drawable || !l.minimum(size):
		return min(n, max(1, l.MinSize-size-l.lost))
	case l.Rule == PerInsert:
		_, high := l.bounds()
		return floor((high-l.difference())/l.Ratio, n)
	}
	return n
}

// floor returns the integer part of x, from 0 to n.
func floor(x float64, n int) int {
	return int(max(0, min(math.Floor(x+tolerance), float64(n))))
}

// forSamples returns what n samples wait for.
func (l *limit) forSamples(n, size int, drawable bool) Needs {
	inserts := 0.0
	if !drawable {
		if size > 0 {
			return Needs{Priority: true}
		}
		inserts = 1
	}
	inserts = max(inserts, float64(l.MinSize-size-l.lost))
	switch {
	case l.Rule == PerInsert:
		low, _ := l.bounds()
		inserts = max(inserts, (low+float64(n)-l.difference())/l.Ratio)
	case l.once():
		inserts = max(inserts, float64(n-size))
	}
	return Needs{Inserts: ceil(inserts)}
}

// forInserts returns what n inserts wait for.
func (l *limit) forInserts(n, size int) Needs {
	if l.once() {
		return Needs{Samples: ceil(float64(size + n - l.Capacity))}
	}
	_, high := l.bounds()
	return Needs{Samples: ceil(l.difference() + float64(n)*l.Ratio - high)}
}

// ceil returns the least integer that is not below x, or 0.
func ceil(x float64) uint64 { return uint64(max(0, math.Ceil(x-tolerance))) }
