package runtime

import (
	"context"
	"errors"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect/v2"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func body(t *testing.T, b *bodies) *heldBody {
	t.Helper()
	return &heldBody{of: b, ctx: t.Context()}
}

// check checks the invariants of a bound.
func (b *bodies) check(t *testing.T) {
	t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	var inSmall, inLarge, growing, largest int
	for h := b.holders.next; h != &b.holders; h = h.next {
		inSmall += h.inSmall
		inLarge += h.inLarge
		if h.grows {
			growing += h.inLarge
			largest = max(largest, h.inLarge)
		}
	}
	require.Equal(t, []int{inSmall, inLarge, growing}, []int{b.inSmall, b.inLarge, b.growing})
	require.LessOrEqual(t, inSmall, b.small)
	require.LessOrEqual(t, inLarge, b.large)
	require.LessOrEqual(t, growing-largest, b.large-b.most, "the largest growing message may not finish")
}

func TestOneMessageOfTheLargestSizeHasRoom(t *testing.T) {
	for _, most := range []int{1, 1 << 10, 1 << 20, 64 << 20} {
		for _, grows := range []bool{false, true} {
			b := newBodies("requests", most)
			one := body(t, b)
			require.NoError(t, one.reserve(most, grows))
			require.NoError(t, body(t, b).reserve(100, false))
			one.end()
			require.Equal(t, bodyFactor*100, b.inSmall+b.inLarge)
			require.Error(t, one.reserve(1, grows), "the call is over")
			require.Equal(t, connect.CodeResourceExhausted, connect.CodeOf(body(t, b).reserve(most+bodyRoom+1, grows)))
			b.check(t)
		}
	}
}

// TestEndlessMessagesLeaveRoomForSmallOnes reserves all room for large and for small messages, and
// then makes small calls.
func TestEndlessMessagesLeaveRoomForSmallOnes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBodies("requests that come", 1<<20)
		var all []*heldBody
		var waiting sync.WaitGroup
		for size := 1 << 20; size > 1<<10; size /= 2 {
			for range 20 {
				one := body(t, b)
				all = append(all, one)
				waiting.Go(func() { _ = one.reserve(size, size%3 == 0) })
			}
			synctest.Wait()
			b.check(t)
			begun, small := time.Now(), body(t, b)
			require.NoError(t, small.reserve(100, false))
			require.Zero(t, time.Since(begun))
			small.end()
		}
		for _, one := range all {
			one.end()
		}
		waiting.Wait()
		require.Zero(t, b.inSmall+b.inLarge)
		require.Zero(t, b.queue.Len())
	})
}

func TestAMessageWaitsForRoomAndEndsWithItsCall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBodies("requests", 1<<20)
		first := body(t, b)
		require.NoError(t, first.reserve(1<<20, false))
		first.complete()
		ctx, cancel := context.WithCancel(t.Context())
		second, third, fourth, fifth := body(t, b), &heldBody{of: b, ctx: ctx}, body(t, b), body(t, b)
		ends := make([]chan error, 4)
		for i, h := range []*heldBody{second, third, fourth, fifth} {
			ends[i] = make(chan error, 1)
			go func() { ends[i] <- h.reserve(1<<20, false) }()
			synctest.Wait()
		}
		<-time.After(bodyPatience * 3)
		cancel()
		require.Equal(t, connect.CodeCanceled, connect.CodeOf(<-ends[1]))
		fourth.end() // its handler has returned, for whatever reason
		require.Error(t, <-ends[2])
		first.release()
		require.NoError(t, <-ends[0])
		second.complete()
		err := <-ends[3]
		require.Equal(t, connect.CodeResourceExhausted, connect.CodeOf(err))
		require.ErrorContains(t, err, "requests over HTTP")
		require.ErrorContains(t, err, bodyWait.String())
		second.end()
		require.Zero(t, b.inLarge+b.inSmall+b.waiting)
	})
}

// TestWaitingResponsesAreBounded covers responses, which are in memory while they wait.
func TestWaitingResponsesAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBodies("responses that go", 1<<20)
		b.parked = b.most
		waiting := 0
		var refused atomic.Int64
		var all []*heldBody
		var ended sync.WaitGroup
		for range 50 {
			one := body(t, b)
			all = append(all, one)
			ended.Go(func() {
				if err := one.reserve(1<<20, false); connect.CodeOf(err) == connect.CodeResourceExhausted {
					refused.Add(1)
					assert.ErrorContains(t, err, "there is no room")
				}
			})
			synctest.Wait()
			b.mu.Lock()
			waiting = max(waiting, b.waiting)
			b.mu.Unlock()
		}
		require.LessOrEqual(t, waiting, b.parked)
		require.EqualValues(t, 47, refused.Load(), "one has room, two wait")
		for _, one := range all {
			one.end()
		}
		ended.Wait()
	})
}

// TestASlowMessageIsInterruptedOnlyIfOthersWait holds room for long, with and without waiters.
func TestASlowMessageIsInterruptedOnlyIfOthersWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBodies("requests", 1<<20)
		interrupted := make(chan time.Time, 1)
		slow, small := body(t, b), body(t, b)
		slow.interrupt = func() { interrupted <- time.Now() }
		small.interrupt = func() { t.Error("a small message does not block a large one") }
		require.NoError(t, slow.reserve(1<<20, false))
		require.NoError(t, small.reserve(1, false))
		<-time.After(time.Hour)
		require.Empty(t, interrupted)
		next, begun := body(t, b), time.Now()
		next.interrupt = slow.interrupt
		got := make(chan error)
		go func() { got <- next.reserve(1<<20, false) }()
		require.LessOrEqual(t, (<-interrupted).Sub(begun), 2*bodySweep)
		require.True(t, slow.isSlow())
		require.ErrorContains(t, slow.tooSlow(), "too slow")
		require.Error(t, slow.reserve(1<<20+1, false))
		slow.end()
		require.NoError(t, <-got)
		third := body(t, b)
		go func() { got <- third.reserve(1<<20, false) }()
		begun = time.Now()
		at := (<-interrupted).Sub(begun)
		require.GreaterOrEqual(t, at, bodyPatience+2*time.Second, "a large message may take its time")
		require.LessOrEqual(t, at, bodyPatience+2*time.Second+2*bodySweep)
		next.end()
		require.NoError(t, <-got)
		third.end()
		small.end()
	})
}

// TestMessagesNeverWaitForEachOther has many concurrent messages of all sizes, known and unknown,
// some of which stall for ever. All others must complete.
func TestMessagesNeverWaitForEachOther(t *testing.T) {
	for seed := range uint64(150) {
		synctest.Test(t, func(t *testing.T) {
			random := rand.New(rand.NewPCG(seed, 1))
			const most = 1 << 20
			b := newBodies("requests", most)
			stalls := random.IntN(2) == 0
			var all sync.WaitGroup
			for i := range 30 {
				size, grows, stalled := 1+random.IntN(1<<random.IntN(21)), random.IntN(2) == 0, stalls && i < 3
				pace := time.Duration(random.IntN(20)) * time.Millisecond
				begin := time.Duration(random.IntN(50)) * time.Millisecond
				steps := 1 + random.IntN(10)
				all.Go(func() {
					<-time.After(begin)
					stop := make(chan struct{})
					h := body(t, b)
					h.interrupt = sync.OnceFunc(func() { close(stop) })
					defer h.end()
					if !grows {
						if err := h.reserve(size, false); err != nil {
							t.Errorf("seed %d: %v", seed, err)
							return
						}
					}
					for step := range steps {
						if grows {
							if err := h.reserve(max(1, size*(step+1)/steps), true); err != nil {
								t.Errorf("seed %d: %v", seed, err)
								return
							}
						}
						select {
						case <-time.After(pace):
						case <-stop:
							t.Errorf("seed %d: a message that makes progress was interrupted", seed)
						}
						b.check(t)
					}
					if stalled {
						select {
						case <-stop:
						case <-time.After(time.Minute): // it blocks no other message
						}
					}
				})
			}
			all.Wait()
			require.Zero(t, b.inSmall+b.inLarge+b.waiting)
		})
	}
}

// modelBody is a message in the model.
type modelBody struct {
	inSmall, inLarge, want int
	grows, waits           bool
}

// modelBodies implements the promises of bodies by examining all messages each time.
type modelBodies struct {
	large, small, most, smallMost int
	all, queue                    []*modelBody
}

func (m *modelBodies) fits(h *modelBody, asSmall bool) bool {
	var inSmall, inLarge, growing, largest int
	for _, other := range m.all {
		if other == h {
			continue
		}
		inSmall += other.inSmall
		inLarge += other.inLarge
		if other.grows {
			growing += other.inLarge
			largest = max(largest, other.inLarge)
		}
	}
	if asSmall {
		return h.inLarge == 0 && h.want <= m.smallMost && h.want <= 2*(m.small-inSmall-h.want)
	}
	if h.grows && growing+h.want-max(largest, h.want) > m.large-m.most {
		return false
	}
	return inLarge+h.want <= m.large
}

func (m *modelBodies) try(h *modelBody, asSmall bool) bool {
	if !m.fits(h, asSmall) {
		return false
	}
	h.inSmall, h.inLarge = 0, h.want
	if asSmall {
		h.inSmall, h.inLarge = h.want, 0
	}
	if h.waits {
		h.waits = false
		m.queue = slices.DeleteFunc(m.queue, func(q *modelBody) bool { return q == h })
	}
	return true
}

func (m *modelBodies) serve() {
	for _, h := range slices.Clone(m.queue) {
		m.try(h, true)
	}
	for len(m.queue) > 0 {
		first := m.queue[0]
		for _, h := range m.queue {
			if h.inLarge > first.inLarge {
				first = h
			}
		}
		if !m.try(first, false) {
			return
		}
	}
}

func (m *modelBodies) reserve(h *modelBody, want int) {
	h.want = want
	if m.try(h, true) || len(m.queue) == 0 && m.try(h, false) {
		return
	}
	h.waits = true
	m.queue = append(m.queue, h)
	m.serve()
}

func (m *modelBodies) end(h *modelBody) {
	h.inSmall, h.inLarge, h.waits = 0, 0, false
	m.all = slices.DeleteFunc(m.all, func(q *modelBody) bool { return q == h })
	m.queue = slices.DeleteFunc(m.queue, func(q *modelBody) bool { return q == h })
	m.serve()
}

// TestBodiesAgreeWithTheirModel compares after each of many random steps which messages have room
// and which wait.
func TestBodiesAgreeWithTheirModel(t *testing.T) {
	for seed := range uint64(100) {
		synctest.Test(t, func(t *testing.T) {
			random := rand.New(rand.NewPCG(seed, 2))
			const most = 1 << 20
			b := newBodies("requests", most)
			m := &modelBodies{large: b.large, small: b.small, most: b.most, smallMost: b.smallMost}
			type pair struct {
				model *modelBody
				real  *heldBody
			}
			var pairs []pair
			var reserving sync.WaitGroup
			reserve := func(p pair, size int) {
				m.reserve(p.model, size*bodyFactor)
				reserving.Go(func() {
					if err := p.real.reserve(size, p.model.grows); err != nil && !errors.Is(err, http.ErrBodyReadAfterClose) {
						t.Errorf("seed %d: %v", seed, err)
					}
				})
			}
			for range 120 {
				switch i := random.IntN(max(1, len(pairs))); {
				case len(pairs) < 3 || random.IntN(3) == 0:
					p := pair{&modelBody{grows: random.IntN(2) == 0}, body(t, b)}
					m.all = append(m.all, p.model)
					pairs = append(pairs, p)
					reserve(p, 1+random.IntN(1<<random.IntN(21)))
				case random.IntN(2) == 0 && pairs[i].model.grows && !pairs[i].model.waits:
					p := pairs[i]
					had := (p.model.inSmall + p.model.inLarge) / bodyFactor
					reserve(p, min(most, had+1+random.IntN(had+1000)))
				default:
					m.end(pairs[i].model)
					pairs[i].real.end()
					pairs = slices.Delete(pairs, i, i+1)
				}
				synctest.Wait()
				b.check(t)
				for i, p := range pairs {
					require.Equal(t, []any{p.model.inSmall, p.model.inLarge, p.model.waits},
						[]any{p.real.inSmall, p.real.inLarge, p.real.place != nil}, "seed %d, message %d", seed, i)
				}
			}
			for _, p := range pairs {
				p.real.end()
			}
			reserving.Wait()
			require.Zero(t, b.inSmall+b.inLarge+b.waiting)
		})
	}
}
