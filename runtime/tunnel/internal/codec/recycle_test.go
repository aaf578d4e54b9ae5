package codec

import (
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// markAll fills memory with a mark.
func markAll(b []byte, mark byte) {
	for i := range b {
		b[i] = mark
	}
}

// heldAndDropped allocates memory, of which some is held and some dropped, with collections in
// between, and returns how much of the held memory was overwritten.
func heldAndDropped(r *recycler) (spoilt int) {
	held := make(map[byte][]byte)
	for round := range 40 {
		mark := byte(round + 1)
		for range 8 {
			b := r.alloc(40 << 10)[:40<<10]
			markAll(b, mark)
			held[mark] = b // the others of this round are dropped
		}
		if round%4 == 3 {
			runtime.GC()
		}
	}
	for mark, b := range held {
		for _, c := range b {
			if c != mark {
				spoilt++
				break
			}
		}
	}
	return spoilt
}

func TestHeldMemoryIsNotReused(t *testing.T) {
	require.Zero(t, heldAndDropped(&recycler{}))
}

func TestMemoryOfACollectedMessageIsReused(t *testing.T) {
	var r recycler
	const n = 100 << 10
	markAll(r.alloc(n)[:n], 1)
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		runtime.GC()
		r.mu.Lock()
		defer r.mu.Unlock()
		assert.Positive(c, r.idle)
	}, time.Minute, time.Millisecond)
	class, size := recycledClass(n)
	require.NotNil(t, r.take(class, size))
}

func TestUnusedMemoryIsFreed(t *testing.T) {
	var r recycler
	class, size := recycledClass(1 << 20)
	for range 10 {
		r.give(&uncleared(size)[:1][0], class, size)
	}
	require.Eventually(t, func() bool {
		runtime.GC()
		r.mu.Lock()
		defer r.mu.Unlock()
		return r.idle == 0
	}, time.Minute, time.Millisecond)
}

func TestIdleMemoryIsBounded(t *testing.T) {
	var r recycler
	class, size := recycledClass(1 << 20)
	memory := &uncleared(size)[:1][0]
	most := 0
	for range 2 * recycledBytes / size {
		r.give(memory, class, size) // the same each time: it is never used
		r.mu.Lock()
		most = max(most, r.idle)
		r.mu.Unlock()
	}
	require.LessOrEqual(t, most, recycledBytes)
	require.Greater(t, most, recycledBytes/2)
}

func TestClassesHaveRoom(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 2<<recycledLargest).Draw(t, "bytes")
		class, size := recycledClass(n)
		require.GreaterOrEqual(t, size, n)
		if class < 0 {
			require.Equal(t, n, size)
			return
		}
		require.Less(t, class, recycledClasses)
		require.Equal(t, (4+class%4)<<(recycledSmallest-2+class/4), size)
		if n > 1<<recycledSmallest {
			require.LessOrEqual(t, 4*size, 5*n+4)
		}
		require.GreaterOrEqual(t, cap(new(recycler).alloc(n)), n)
	})
}
