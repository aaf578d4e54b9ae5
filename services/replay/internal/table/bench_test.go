package table

import (
	"context"
	"fmt"
	"math/rand/v2"
	"runtime"
	"testing"

	"github.com/stretchr/testify/require"
)

// bareTree is the yardstick: a binary sum tree in an array, without items, keys or a lock.
type bareTree struct {
	leaves int
	sums   []float64
}

func newBareTree(n int) *bareTree {
	leaves := 1
	for leaves < n {
		leaves *= 2
	}
	t := &bareTree{leaves: leaves, sums: make([]float64, 2*leaves)}
	for i := range n {
		t.sums[leaves+i] = float64(i%100) + 1
	}
	for i := leaves - 1; i > 0; i-- {
		t.sums[i] = t.sums[2*i] + t.sums[2*i+1]
	}
	return t
}

func (t *bareTree) draw(x float64) int {
	i := 1
	for i < t.leaves {
		i *= 2
		if x >= t.sums[i] {
			x -= t.sums[i]
			i++
		}
	}
	return i - t.leaves
}

func (t *bareTree) set(leaf int, mass float64) {
	i := t.leaves + leaf
	t.sums[i] = mass
	for i /= 2; i > 0; i /= 2 {
		t.sums[i] = t.sums[2*i] + t.sums[2*i+1]
	}
}

const batchSize = 256

// filled returns a table of n items.
func filled(b *testing.B, config Config, n int) (*Table, []Key) {
	b.Helper()
	config.MaxItems = n
	t, err := New(config)
	require.NoError(b, err)
	keys := make([]Key, n)
	items := make([]Item, 1000)
	for done := 0; done < n; done += len(items) {
		items = items[:min(len(items), n-done)]
		for i := range items {
			items[i] = Item{Run: Run{First: uint64(done + i), Length: 1}, Priority: float64((done+i)%100) + 1}
		}
		_, err := t.Insert(b.Context(), "", items, keys[done:done+len(items)])
		require.NoError(b, err)
	}
	return t, keys
}

// BenchmarkDraw draws 256 items: compare prioritized with the bare tree of the same size.
func BenchmarkDraw(b *testing.B) {
	for _, n := range []int{1_000_000, 10_000_000} {
		b.Run(fmt.Sprintf("tree/%d", n), func(b *testing.B) {
			tree := newBareTree(n)
			for b.Loop() {
				for range batchSize {
					tree.draw(rand.Float64() * tree.sums[1])
				}
			}
		})
		for _, s := range []Selector{{Kind: Prioritized, Exponent: 0.6}, {Kind: Uniform}, {Kind: Epoch}, {Kind: Highest}} {
			b.Run(fmt.Sprintf("%v/%d", s, n), func(b *testing.B) {
				t, _ := filled(b, Config{Sampler: s, Remover: Selector{Kind: FIFO}}, n)
				samples := make([]Sample, batchSize)
				for b.Loop() {
					if _, err := t.Sample(context.Background(), samples, SampleOptions{Beta: 0.4}); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

// BenchmarkUpdate updates 256 random priorities.
func BenchmarkUpdate(b *testing.B) {
	for _, n := range []int{1_000_000, 10_000_000} {
		b.Run(fmt.Sprintf("tree/%d", n), func(b *testing.B) {
			tree := newBareTree(n)
			for b.Loop() {
				for range batchSize {
					tree.set(rand.IntN(n), rand.Float64())
				}
			}
		})
		for _, s := range []Selector{{Kind: Prioritized, Exponent: 0.6}, {Kind: Uniform}, {Kind: Highest}} {
			b.Run(fmt.Sprintf("%v/%d", s, n), func(b *testing.B) {
				t, _ := filled(b, Config{Sampler: s, Remover: Selector{Kind: FIFO}}, n)
				keys, updated := make([]Key, batchSize), make([]float64, batchSize)
				for b.Loop() {
					for i := range keys {
						// The item's key, without the cache miss of a list of keys.
						slot := rand.Uint32N(uint32(n))
						keys[i], updated[i] = keyOf(uint64(slot)+1, slot), rand.Float64()
					}
					if stale, err := t.Update(keys, updated); err != nil || stale > 0 {
						b.Fatal(stale, err)
					}
				}
			})
		}
	}
}

// BenchmarkInsert inserts 256 items into a full table, and expires as many.
func BenchmarkInsert(b *testing.B) {
	const n = 1_000_000
	for _, s := range []Selector{{Kind: Prioritized, Exponent: 0.6}, {Kind: Uniform}, {Kind: Highest}} {
		for _, way := range []string{"evict", "expire"} {
			b.Run(fmt.Sprintf("%s/%v/%d", way, s, n), func(b *testing.B) {
				t, _ := filled(b, Config{Sampler: s, Remover: Selector{Kind: FIFO}}, n)
				items, keys := make([]Item, batchSize), make([]Key, batchSize)
				for next := uint64(n); b.Loop(); {
					for i := range items {
						items[i] = Item{Run: Run{First: next, Length: 1}, Maximum: true}
						next++
					}
					if way == "expire" {
						t.Expire(next - n)
					}
					if _, err := t.Insert(context.Background(), "", items, keys); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

// BenchmarkMemory reports the bytes of an item.
func BenchmarkMemory(b *testing.B) {
	const n = 1_000_000
	for _, s := range []Selector{{Kind: Prioritized, Exponent: 0.6}, {Kind: Uniform}, {Kind: Epoch}, {Kind: Highest}} {
		b.Run(s.String(), func(b *testing.B) {
			var before, after runtime.MemStats
			for b.Loop() {
				runtime.GC()
				runtime.ReadMemStats(&before)
				t, keys := filled(b, Config{Sampler: s, Remover: Selector{Kind: FIFO}}, n)
				runtime.GC()
				runtime.ReadMemStats(&after)
				b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/n-8, "B/item")
				runtime.KeepAlive(t)
				runtime.KeepAlive(keys)
			}
		})
	}
}
