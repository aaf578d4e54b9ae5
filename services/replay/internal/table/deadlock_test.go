package table

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// searched is a state of a small table: how many samples are due, and how often each item was
// sampled, in increasing order.
type searched struct {
	due   float64
	items []uint32
}

func (s searched) String() string { return fmt.Sprintf("%.6f %v", s.due, s.items) }

// search visits all states that a limiter can get to, whatever items the sampler and the remover
// choose.
type search struct {
	config Config
	limit  limit
	known  map[string]searched
	// next are the states that an insert or a sample leads to, each by the string of the state.
	inserts, samples map[string][]string
}

// newSearch begins with the given states.
func newSearch(c Config, from ...searched) *search {
	s := &search{
		config: c, limit: newLimit(c.Limiter, 0), known: make(map[string]searched),
		inserts: make(map[string][]string), samples: make(map[string][]string),
	}
	for todo := from; len(todo) > 0; {
		state := todo[0]
		todo = todo[1:]
		if _, again := s.known[state.String()]; again {
			continue
		}
		s.known[state.String()] = state
		inserted, sampled := s.step(state)
		for _, next := range inserted {
			s.inserts[state.String()] = append(s.inserts[state.String()], next.String())
		}
		for _, next := range sampled {
			s.samples[state.String()] = append(s.samples[state.String()], next.String())
		}
		todo = append(append(todo, inserted...), sampled...)
	}
	return s
}

// step returns the states that an insert or a sample of one item leads to, if the limiter allows
// it.
func (s *search) step(from searched) (inserted, sampled []searched) {
	l, size := s.limit, len(from.items)
	l.offset = from.due
	if l.canInsert(1, size, size > 0) > 0 {
		// Where samples wait for good, inserts never end.
		_, high := l.bounds()
		due := min(from.due, high+l.Ratio*float64(s.config.MaxItems)) + l.Ratio
		if size < s.config.MaxItems {
			inserted = append(inserted, searched{due, slices.Insert(slices.Clone(from.items), 0, 0)})
		} else {
			for i := range from.items {
				inserted = append(inserted, searched{due, slices.Insert(slices.Delete(slices.Clone(from.items), i, i+1), 0, 0)})
			}
		}
	}
	most := s.config.MaxSampled
	if l.once() {
		most = 1
	}
	if l.canSample(1, size, size > 0) > 0 {
		for i, n := range from.items {
			items := slices.Delete(slices.Clone(from.items), i, i+1)
			switch {
			case most == 0:
				items = slices.Insert(items, 0, 0) // it does not matter how often
			case n+1 < most:
				items = append(items, n+1)
				slices.Sort(items)
			}
			due := from.due
			if l.Rule == PerInsert {
				due--
			}
			sampled = append(sampled, searched{due, items})
		}
	}
	return inserted, sampled
}

// deadlock returns a state after which no item is inserted, or none is sampled, for good; or "".
func (s *search) deadlock() string {
	for _, edges := range []map[string][]string{s.inserts, s.samples} {
		good := make(map[string]bool)
		for from := range edges {
			good[from] = true
		}
		for progress := true; progress; {
			progress = false
			for from := range s.known {
				if good[from] {
					continue
				}
				for _, to := range slices.Concat(s.inserts[from], s.samples[from]) {
					if good[to] {
						good[from], progress = true, true
						break
					}
				}
			}
		}
		for from := range s.known {
			if !good[from] {
				return from
			}
		}
	}
	return ""
}

// beginnings are the states in which a limiter can begin: with a table of any size that it is set
// for; and with each difference between its bounds, in steps that find any gap of smallConfigs.
// Which of them a limiter gets to depends on the fractions of its ratio: that a buffer happens to
// suffice for them is no reason to accept it.
func beginnings(c Config) []searched {
	var all []searched
	for size := range c.MaxItems + 1 {
		l := newLimit(c.Limiter, size)
		all = append(all, searched{l.difference(), make([]uint32, size)})
		if c.Limiter.Rule == PerInsert && size >= l.MinSize {
			low, high := l.bounds()
			for due := low; due <= high; due += 0.125 {
				all = append(all, searched{due, make([]uint32, size)})
			}
		}
	}
	return all
}

// smallConfigs are all configurations of small tables whose limiter is not invalid for another
// reason than that it deadlocks.
func smallConfigs() []Config {
	var all []Config
	for maxItems := 1; maxItems <= 3; maxItems++ {
		for minSize := range 5 {
			for _, maxSampled := range []uint32{0, 1, 3} {
				c := Config{Name: "t", MaxItems: maxItems, MaxSampled: maxSampled, Limiter: MinSize(minSize)}
				all = append(all, c)
				for _, ratio := range []float64{0.5, 1, 2.5} {
					for buffer := 0.0; buffer <= 2; buffer += 0.25 {
						c.Limiter = SamplesPerInsert(ratio, minSize, buffer)
						all = append(all, c)
					}
				}
			}
			for capacity := range 5 {
				c := Config{Name: "t", MaxItems: maxItems, Sampler: Selector{Kind: FIFO}, Limiter: Limiter{Rule: Queue, MinSize: minSize, Capacity: capacity}}
				all = append(all, c)
				c.Sampler.Kind, c.Limiter.Rule = LIFO, Stack
				all = append(all, c)
			}
		}
	}
	return all
}

// TestExactlyLimitersThatDeadlockAreRefused searches all states of small tables. A limiter
// deadlocks if there is a state after which nothing is inserted, or nothing sampled, for good.
func TestExactlyLimitersThatDeadlockAreRefused(t *testing.T) {
	refused, accepted := 0, 0
	for _, c := range smallConfigs() {
		problem := c.Limiter.problem(&c)
		if problem != "" && !strings.Contains(problem, "deadlock") {
			continue
		}
		stuck := newSearch(c, beginnings(c)...).deadlock()
		require.Equal(t, stuck != "", problem != "", "%v, at most %d items, each sampled %d times: %q, and the search found %q",
			c.Limiter, c.MaxItems, c.MaxSampled, problem, stuck)
		if problem != "" {
			refused++
		} else {
			accepted++
		}
	}
	t.Logf("%d limiters are refused, %d are not", refused, accepted)
	require.Greater(t, refused, 100)
	require.Greater(t, accepted, 100)
}
