package table

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// requireDistribution performs a chi-squared test: observed counts must be plausible for the
// expected ones. The seeds of tests are fixed, so a failure is not chance.
func requireDistribution(t *testing.T, expected []float64, observed []int) {
	t.Helper()
	chi, degrees := 0.0, -1.0
	for i, e := range expected {
		if e == 0 {
			require.Zero(t, observed[i], "item %d can't be drawn", i)
			continue
		}
		chi += (float64(observed[i]) - e) * (float64(observed[i]) - e) / e
		degrees++
	}
	if degrees < 1 {
		return
	}
	// The approximation of Wilson and Hilferty; 3.7 standard deviations are a probability of 1e-4.
	z := (math.Cbrt(chi/degrees) - (1 - 2/(9*degrees))) / math.Sqrt(2/(9*degrees))
	require.Less(t, z, 3.7, "observed %v, expected %.0f", observed, expected)
}

func rows(first uint64) Item { return Item{Run: Run{First: first, Length: 1}, Priority: 1} }

func insert(t require.TestingT, table *Table, items ...Item) []Key {
	keys := make([]Key, len(items))
	n := try(table, &waiter{op: Insert, items: items, keys: keys, total: len(items)})
	require.Equal(t, len(items), n)
	return keys
}

func sample(t require.TestingT, table *Table, n int) []Sample {
	samples := make([]Sample, n)
	require.Equal(t, n, try(table, &waiter{op: Draw, samples: samples, total: n}))
	return samples
}

// TestDrawsHaveTheStatedDistribution draws from tables whose items and priorities change meanwhile.
func TestDrawsHaveTheStatedDistribution(t *testing.T) {
	for _, s := range []Selector{{}, {Kind: Prioritized, Exponent: 0.6}, {Kind: Prioritized, Exponent: 2}, {Kind: Prioritized}} {
		t.Run(s.String(), func(t *testing.T) {
			table, err := New(Config{Sampler: s, MaxItems: 100, Seed: 1})
			require.NoError(t, err)
			random := rand.New(rand.NewPCG(2, 3))
			// Items are identified by their first row, of which there are as many as slots.
			const n = 40
			expected, observed := make([]float64, n), make([]int, n)
			priorities, keys := make([]float64, n), make([]Key, n)
			for range 2000 {
				for i := range n {
					switch {
					case keys[i] == 0:
						it := rows(uint64(i))
						it.Priority = float64(random.IntN(4)) * float64(i)
						priorities[i], keys[i] = it.Priority, insert(t, table, it)[0]
					case random.IntN(8) == 0:
						priorities[i] = random.Float64() * float64(i%5)
						_, err = table.Update(keys[i:i+1], priorities[i:i+1])
						require.NoError(t, err)
					case random.IntN(20) == 0:
						_, err = table.Delete(keys[i : i+1])
						require.NoError(t, err)
						keys[i] = 0
					}
				}
				total, mass := 0.0, make([]float64, n)
				for i := range n {
					if keys[i] != 0 && (s.Kind == Uniform || priorities[i] > 0) {
						mass[i] = math.Pow(priorities[i], s.Exponent)
						total += mass[i]
					}
				}
				for _, drawn := range sample(t, table, 100) {
					observed[drawn.Run.First]++
				}
				for i := range n {
					expected[i] += 100 * mass[i] / total
				}
			}
			requireDistribution(t, expected, observed)
		})
	}
}

// TestEpochsAreUniformPermutations compares how often each order of four items occurs, and each
// order relative to that of the epoch before.
func TestEpochsAreUniformPermutations(t *testing.T) {
	table, err := New(Config{Sampler: Selector{Kind: Epoch}, MaxItems: 4, Seed: 1})
	require.NoError(t, err)
	insert(t, table, rows(0), rows(1), rows(2), rows(3))
	const epochs = 24_000
	orders, relative := map[[4]int]int{}, map[[4]int]int{}
	var last, order, change [4]int
	for range epochs {
		for i, s := range sample(t, table, 4) {
			order[i] = int(s.Run.First)
			change[i] = slices.Index(last[:], order[i])
		}
		orders[order]++
		relative[change]++
		last = order
	}
	for _, counts := range []map[[4]int]int{orders, relative} {
		require.GreaterOrEqual(t, len(counts), 24, "all orders occur; the first epoch has none before it")
		var observed []int
		for _, n := range counts {
			if n > 1 {
				observed = append(observed, n)
			}
		}
		requireDistribution(t, slices.Repeat([]float64{epochs / 24}, 24), observed)
	}
}

// TestRemoversHaveTheStatedDistribution evicts items of full tables.
func TestRemoversHaveTheStatedDistribution(t *testing.T) {
	const n, evictions = 8, 8000
	cube := make([]float64, n)
	for i := range cube {
		cube[i] = evictions * float64(i*i*i) / 784 // the sum of the cubes up to 7
	}
	uniform := slices.Repeat([]float64{evictions / n}, n)
	only := func(i int) []float64 {
		e := make([]float64, n)
		e[i] = evictions
		return e
	}
	for _, c := range []struct {
		remover  Selector
		zero     bool
		expected []float64
	}{
		{remover: Selector{Kind: Uniform}, expected: uniform},
		{remover: Selector{Kind: Epoch}, expected: uniform},
		{remover: Selector{Kind: Prioritized, Exponent: 3}, expected: cube},
		{remover: Selector{Kind: Prioritized, Exponent: 3}, zero: true, expected: uniform},
		{remover: Selector{Kind: FIFO}, expected: only(0)},
		{remover: Selector{Kind: LIFO}, expected: only(n - 1)},
		{remover: Selector{Kind: Lowest}, expected: only(0)},
		{remover: Selector{Kind: Highest}, expected: only(n - 1)},
		{remover: Selector{Kind: Highest}, zero: true, expected: only(0)}, // the oldest of equals
	} {
		observed := make([]int, n)
		table, err := New(Config{Sampler: Selector{Kind: FIFO}, Remover: c.remover, MaxItems: n, Seed: 1})
		require.NoError(t, err)
		for range evictions {
			var keys []Key
			for i := range n {
				it := rows(uint64(i))
				it.Priority = float64(i)
				if c.zero {
					it.Priority = 0
				}
				keys = append(keys, insert(t, table, it)...)
			}
			keys = append(keys, insert(t, table, rows(100))...)
			for i, key := range keys[:n] {
				if _, ok := table.Get(key); !ok {
					observed[i]++
				}
			}
			if c.expected[0] == evictions || c.expected[n-1] == evictions {
				observed[slices.Index(observed, 1)] = evictions // without chance, once is enough
				break
			}
			_, err = table.Delete(keys)
			require.NoError(t, err)
		}
		t.Log(c.remover, c.zero)
		requireDistribution(t, c.expected, observed)
	}
}

// TestZeroIsNeverDrawn draws where rounding is worst: from masses of all magnitudes, at and behind
// the ends of intervals.
func TestZeroIsNeverDrawn(t *testing.T) {
	mass := rapid.OneOf(rapid.Just(0.0), rapid.Just(0.0), rapid.SampledFrom([]float64{0x1p-1074, 0x1p-1022, 1, 0.1, 1e-16, 1e16, 1e300}), rapid.Float64Range(0, 1))
	rapid.Check(t, func(t *rapid.T) {
		var n node
		for i := range n {
			n[i] = mass.Draw(t, "mass")
		}
		if n == (node{}) {
			n[rapid.IntRange(0, fanout-1).Draw(t, "child")] = 0x1p-1074
		}
		ends, x := []float64{0}, 0.0
		for _, m := range n {
			x += m
			ends = append(ends, x, math.Nextafter(x, 0), math.Nextafter(x, math.Inf(1)))
		}
		at := rapid.OneOf(rapid.SampledFrom(ends), rapid.Float64Range(0, 2*x)).Draw(t, "x")
		child, rest := descend(&n, at)
		require.Less(t, child, uint32(fanout))
		require.Positive(t, n[child], "child %d of %v at %g", child, n, at)
		require.GreaterOrEqual(t, rest, 0.0)
	})
}

// TestSumsStayExact sets masses of all magnitudes for long: what is left must be as if nothing had
// been there before.
func TestSumsStayExact(t *testing.T) {
	const n = 5000
	random := rand.New(rand.NewPCG(1, 2))
	var s, fresh sumTree
	masses := make([]float64, n)
	for i := range 200_000 {
		leaf := uint32(random.IntN(min(n, i/10+1)))
		s.grow(leaf + 1)
		masses[leaf] = math.Exp(200 * (random.Float64() - 0.5))
		s.set(leaf, masses[leaf])
		if i%1000 == 0 {
			s.total()
		}
	}
	s.grow(n)
	fresh.grow(n)
	for i := range masses {
		masses[i] = 0x1p-60 * float64(i%2*(i%7))
		s.set(uint32(i), masses[i])
		fresh.set(uint32(i), masses[i])
	}
	require.InDelta(t, fresh.total(), s.total(), 0)
	dst := make([]choice, 1000)
	s.draw(random, dst)
	for _, c := range dst {
		require.Positive(t, masses[c.slot])
	}
	for i := range n {
		s.set(uint32(i), 0)
	}
	require.Zero(t, s.total(), "no rounding error is left")
}

// TestExtremesMatchScan compares the highest and the lowest positive priority with those of a scan.
func TestExtremesMatchScan(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var p priorities
		var all []float64
		size := rapid.SampledFrom([]int{1, 9, 70, 600}).Draw(t, "size")
		for range rapid.IntRange(1, 50).Draw(t, "changes") {
			i := rapid.IntRange(0, size-1).Draw(t, "slot")
			for i >= len(all) {
				all = append(all, 0)
			}
			p.grow(uint32(i + 1))
			all[i] = drawPriority(t)
			all[i] = math.Abs(all[i])
			p.set(uint32(i), all[i])
			least := 0.0
			for _, x := range all {
				if x > 0 && (least == 0 || x < least) {
					least = x
				}
			}
			require.InDelta(t, slices.Max(all), p.highest(), 0)
			require.InDelta(t, least, p.lowest(), 0)
		}
	})
}

// TestWheelMatchesScan inserts items in any order, and advances by all distances.
func TestWheelMatchesScan(t *testing.T) {
	distance := rapid.Custom(func(t *rapid.T) uint64 {
		return rapid.Uint64Range(0, 1<<rapid.IntRange(0, 44).Draw(t, "bits")).Draw(t, "distance")
	})
	rapid.Check(t, func(t *rapid.T) {
		var w wheel
		var s slots
		alive := map[uint32]bool{}
		t.Repeat(map[string]func(*rapid.T){
			"insert": func(t *rapid.T) {
				slot := s.allocate()
				s.items.at(slot).first = w.oldest + distance.Draw(t, "first")
				w.insert(s.items, slot)
				alive[slot] = true
			},
			"remove": func(t *rapid.T) {
				for slot := range s.high {
					if alive[slot] && rapid.IntRange(0, 3).Draw(t, "remove") == 0 {
						w.remove(s.items, slot)
						s.release(slot)
						delete(alive, slot)
					}
				}
			},
			"advance": func(t *rapid.T) {
				to := w.oldest + distance.Draw(t, "to")
				expired := map[uint32]bool{}
				w.advance(s.items, to, func(slot uint32) {
					require.True(t, alive[slot])
					expired[slot] = true
				})
				for slot := range alive {
					require.Equal(t, s.items.at(slot).first < to, expired[slot])
				}
				for slot := range expired {
					delete(alive, slot)
					s.release(slot)
				}
			},
		})
	})
}

// TestPower: weights have the precision of math.Pow, however small they are.
func TestPower(t *testing.T) {
	for ratio := 1.0; ratio > 0; ratio /= 3 {
		for _, exponent := range []float64{0.1, 0.4, 1, 2} {
			if want := math.Pow(ratio, exponent); want == 0 {
				require.Zero(t, power(ratio, exponent))
			} else {
				require.InEpsilon(t, want, power(ratio, exponent), 1e-12, "%g to the power of %g", ratio, exponent)
			}
		}
	}
	require.Zero(t, power(0, 1))
}
