package runtime

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect/v2"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	storagev1 "github.com/raylink/raylink/gen/raylink/storage/v1"
	"github.com/raylink/raylink/internal/invariants"
)

// bubbled returns the number of goroutines of the test's bubble. Others may end meanwhile.
func bubbled() int {
	buf := make([]byte, 1<<20)
	first, _, _ := strings.Cut(string(buf[:runtime.Stack(buf, false)]), "\n")
	_, bubble, _ := strings.Cut(first, "synctest bubble ")
	return strings.Count(string(buf[:runtime.Stack(buf, true)]), "synctest bubble "+bubble)
}

// numbered returns the metadata that a holding stub answers with.
func numbered(ctx context.Context, i int) context.Context {
	return WithMetadata(ctx, "number", strconv.Itoa(i))
}

// holding is a stub whose methods hold their answers, which are the number in the call's metadata.
// began are the numbers in the order in which the methods began.
func holding(limits Limits, holds func(i int) []*Hold) (s *stub, began *[]int) {
	s, began = newLimitedCounter("a", limits), new([]int)
	var mu sync.Mutex
	number := func(ctx context.Context) uint64 {
		i, err := strconv.Atoi(CallFrom(ctx).Metadata().Get("number"))
		if err != nil {
			panic(err)
		}
		mu.Lock()
		*began = append(*began, i)
		mu.Unlock()
		for _, h := range holds(i) {
			s.node.HoldAnswer(ctx, h)
		}
		return uint64(i)
	}
	s.take = func(ctx context.Context, _ *storagev1.IncrRequest) (*storagev1.IncrResponse, error) {
		return &storagev1.IncrResponse{Id: number(ctx)}, nil
	}
	s.concurrent = func(ctx context.Context, _ *storagev1.HasRequest) (*storagev1.HasResponse, error) {
		return &storagev1.HasResponse{Has: number(ctx) > 0}, nil
	}
	return s, began
}

func only(h *Hold) func(int) []*Hold { return func(int) []*Hold { return []*Hold{h} } }

// heldIn is the number of answers that a Hold holds.
func heldIn(h *Hold) (n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for a := h.first; a != nil; a = a.next {
		n++
	}
	return n
}

// Calls behind one whose answer is held run in their order, and all are answered by the release,
// each with its own answer and in the order in which they ran.
func TestHoldAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const calls = 5
		h := &Hold{}
		s, began := holding(Limits{}, only(h))
		inline := make(chan uint64, 1)
		go func() {
			res, err := s.incr.call(numbered(t.Context(), 0), s.ref, nil)
			assert.NoError(t, err)
			inline <- res.GetId()
		}()
		synctest.Wait()
		before := bubbled()
		futures := make([]*Future[*storagev1.IncrResponse], calls)
		var ended []uint64
		for i := range futures {
			futures[i] = s.incr.async(numbered(t.Context(), i+1), s.ref, nil)
		}
		synctest.Wait()
		require.Equal(t, []int{0, 1, 2, 3, 4, 5}, *began, "the turn was not passed on")
		require.Equal(t, before, bubbled(), "goroutines wait for the release")
		require.Equal(t, calls+1, s.node.mailbox.Stats().Running, "the answers are not held")
		require.Empty(t, inline, "the answer was not held")
		require.NoError(t, h.Err())
		arrived := make(chan *future, calls)
		for _, f := range futures {
			require.False(t, f.f.isDone(), "the answer was not held")
			f.f.notify(arrived)
		}
		h.Release(nil)
		for range futures {
			ended = append(ended, (<-arrived).res.(*storagev1.IncrResponse).GetId())
		}
		require.Equal(t, []uint64{1, 2, 3, 4, 5}, ended, "the answers are out of order")
		require.Zero(t, <-inline)
		h.Release(io.ErrUnexpectedEOF) // only the first counts
		require.NoError(t, h.Err())
		res, err := s.incr.call(numbered(t.Context(), 7), s.ref, nil)
		require.NoError(t, err, "a Hold that was released holds no answers")
		require.Equal(t, uint64(7), res.GetId())
		synctest.Wait()
		require.Zero(t, s.node.mailbox.Stats().Running)
		require.Equal(t, 1, heldTurns(t, s))
	})
}

// The answers of concurrent methods are held without goroutines, too. Meanwhile they count towards
// MaxStreams.
func TestHoldAnswerOfConcurrentMethod(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &Hold{}
		s, began := holding(Limits{MaxStreams: 2}, only(h))
		before := bubbled()
		var futures []*Future[*storagev1.HasResponse]
		for i := range 3 {
			futures = append(futures, s.has.async(numbered(t.Context(), i+1), s.ref, nil))
			synctest.Wait()
		}
		require.Equal(t, []int{1, 2}, *began)
		require.Equal(t, before, bubbled(), "goroutines wait for the release")
		_, err := futures[2].Get(t.Context())
		require.Equal(t, connect.CodeResourceExhausted, connect.CodeOf(err))
		futures[0].Cancel()
		sync := make(chan error, 1)
		go func() {
			_, err := s.has.call(numbered(t.Context(), 4), s.ref, nil)
			sync <- err
		}()
		synctest.Wait()
		require.Len(t, *began, 3, "a call that was canceled counts still")
		h.Release(nil)
		res, err := futures[1].Get(t.Context())
		require.NoError(t, err)
		require.True(t, res.GetHas())
		require.NoError(t, <-sync)
		synctest.Wait()
		require.Zero(t, s.node.mailbox.Stats().Running)
	})
}

// heldWays are the ways of a call inside a process, each as a function that makes one and returns
// its error.
func heldWays(s *stub) map[string]func(context.Context) error {
	return map[string]func(context.Context) error{
		"inline": s.call,
		"queued": func(ctx context.Context) error {
			out, err := outgoingOf(ctx, &s.incr.m)
			if err != nil {
				return err
			}
			cc := localCall(ctx, &s.incr.m, out.metadata)
			s.node.bind(cc)
			_, err = s.node.invokeQueued(cc, &storagev1.IncrRequest{})
			return err
		},
		"async": func(ctx context.Context) error { _, err := s.future(ctx).Get(context.Background()); return err },
		"concurrent": func(ctx context.Context) error {
			_, err := s.has.async(ctx, s.ref, nil).Get(context.Background())
			return err
		},
	}
}

// hostileError is an error of user code whose methods do not return.
type hostileError struct{ end func() }

func (e *hostileError) Error() string { e.end(); return "" }

// Every caller gets the error of the release, converted as if its method had returned it.
func TestReleaseWithError(t *testing.T) {
	for name, test := range map[string]struct {
		err  error
		code connect.Code
		text string
	}{
		"plain":     {io.ErrUnexpectedEOF, connect.CodeUnknown, "unexpected EOF"},
		"connect":   {connect.NewError(connect.CodeAborted, "no"), connect.CodeAborted, "no"},
		"panics":    {&hostileError{func() { panic("on purpose") }}, connect.CodeInternal, "a panicked in"},
		"ends":      {&hostileError{runtime.Goexit}, connect.CodeInternal, "instead of returning"},
		"of a call": {connect.NewError(connect.CodeNotFound, "far").WithRemote(), connect.CodeNotFound, "far"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := &Hold{}
				s, _ := holding(Limits{MaxStreams: 8}, only(h))
				type end struct {
					way string
					err error
				}
				ends := make(chan end, 20)
				want := 0
				for way, call := range heldWays(s) {
					if name == "ends" && way == "inline" {
						continue // it ends its caller's goroutine
					}
					for range 3 {
						want++
						go func() { ends <- end{way, call(numbered(t.Context(), 1))} }()
					}
				}
				synctest.Wait()
				go h.Release(test.err)
				for range want {
					e := <-ends
					require.Equal(t, test.code, connect.CodeOf(e.err), "%s: %v", e.way, e.err)
					require.ErrorContains(t, e.err, test.text, e.way)
				}
				synctest.Wait()
				require.Zero(t, s.node.mailbox.Stats().Running)
				if name == "plain" {
					require.ErrorIs(t, s.call(numbered(t.Context(), 1)), test.err, "a method that is held later")
				}
			})
		})
	}
}

// A caller whose context ends while its answer is held gets that error at once, and the Hold
// forgets the call.
func TestHeldCallerEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &Hold{}
		s, _ := holding(Limits{MaxStreams: 8}, only(h))
		ways := heldWays(s)
		ways["concurrent and sync"] = func(ctx context.Context) error { _, err := s.has.call(ctx, s.ref, nil); return err }
		for way, call := range ways {
			for name, end := range map[string]func() (context.Context, context.CancelFunc, connect.Code){
				"deadline": func() (context.Context, context.CancelFunc, connect.Code) {
					ctx, cancel := context.WithTimeout(t.Context(), time.Second)
					return ctx, cancel, connect.CodeDeadlineExceeded
				},
				"cancel": func() (context.Context, context.CancelFunc, connect.Code) {
					ctx, cancel := context.WithCancel(t.Context())
					time.AfterFunc(time.Second, cancel)
					return ctx, cancel, connect.CodeCanceled
				},
			} {
				begun := time.Now()
				ctx, cancel, code := end()
				err := call(numbered(ctx, 1))
				cancel()
				require.Equal(t, code, connect.CodeOf(err), "%s, %s: %v", way, name, err)
				require.ErrorContains(t, err, "while its answer was held back; it has run", way)
				require.Equal(t, time.Second, time.Since(begun), way)
				synctest.Wait()
				require.Zero(t, heldIn(h), "%s: the Hold has the call still", way)
				require.Zero(t, s.node.mailbox.Stats().Running, "%s: the node has the call still", way)
			}
		}
		h.Release(nil)
		f := s.future(numbered(t.Context(), 1))
		_, err := f.Get(t.Context())
		require.NoError(t, err)
	})
}

// A method that is canceled before it asks for the Hold, or before it returns, is not held.
func TestHoldAnswerAfterCancel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for name, late := range map[string]bool{"before HoldAnswer": false, "after HoldAnswer": true} {
			h := &Hold{}
			s := newCounter("a", 1)
			proceed := make(chan struct{})
			s.does(func(ctx context.Context) error {
				if late {
					require.True(t, s.node.HoldAnswer(ctx, h))
				}
				<-proceed
				require.False(t, s.node.HoldAnswer(ctx, h), name)
				return nil
			})
			f := s.future(t.Context())
			synctest.Wait()
			f.Cancel()
			close(proceed)
			synctest.Wait()
			require.Zero(t, heldIn(h), name)
			require.Zero(t, s.node.mailbox.Stats().Running, name)
			_, err := f.Get(t.Context())
			require.Equal(t, connect.CodeCanceled, connect.CodeOf(err))
		}
	})
}

// A method that does not return is not held: its caller gets the error at once. One that returns an
// error is.
func TestEndAfterHoldAnswer(t *testing.T) {
	for _, turns := range []int{1, 3} {
		synctest.Test(t, func(t *testing.T) {
			s := newLimitedCounter("a", Limits{MaxConcurrency: turns, MaxStreams: 8})
			h := &Hold{}
			for _, fn := range []func() error{
				func() error { panic("on purpose") },
				func() error { runtime.Goexit(); return nil },
			} {
				run := func(ctx context.Context) error {
					require.True(t, s.node.HoldAnswer(ctx, h))
					return fn()
				}
				s.does(run)
				s.doesConcurrent(run)
				for way, call := range heldWays(s) {
					over := make(chan error, 1)
					go func() { // an inline call ends its caller's goroutine
						defer close(over)
						over <- call(t.Context())
					}()
					if err, returned := <-over; returned {
						require.Equal(t, connect.CodeInternal, connect.CodeOf(err), way)
					}
				}
				synctest.Wait()
				require.Zero(t, heldIn(h))
				require.Zero(t, s.node.mailbox.Stats().Running)
			}
			s.does(func(ctx context.Context) error {
				s.node.EndTurn(ctx)
				s.node.HoldAnswer(ctx, h)
				return io.ErrUnexpectedEOF
			})
			f := s.future(t.Context())
			synctest.Wait()
			require.False(t, f.f.isDone())
			h.Release(nil)
			_, err := f.Get(t.Context())
			require.ErrorIs(t, err, io.ErrUnexpectedEOF)
			synctest.Wait()
			require.Equal(t, turns, heldTurns(t, s))
		})
	}
}

// Several Holds of one answer are all waited for.
func TestSeveralHolds(t *testing.T) {
	for _, order := range [][]int{{0, 1, 2}, {2, 1, 0}, {1, 2, 0}} {
		for _, fails := range []int{-1, 0, 2} {
			synctest.Test(t, func(t *testing.T) {
				holds := []*Hold{{}, {}, {}}
				s, _ := holding(Limits{MaxStreams: 8}, func(int) []*Hold { return []*Hold{holds[0], holds[1], holds[0], holds[2], holds[2]} })
				ends := make(chan error, 4)
				for _, call := range heldWays(s) {
					go func() { ends <- call(numbered(t.Context(), 1)) }()
				}
				for i, which := range order {
					synctest.Wait()
					if fails < 0 {
						require.Empty(t, ends, "after %d of them", i)
					}
					if which == fails {
						holds[which].Release(io.ErrUnexpectedEOF)
					} else {
						holds[which].Release(nil)
					}
				}
				for range 4 {
					if err := <-ends; fails < 0 {
						require.NoError(t, err)
					} else {
						require.ErrorIs(t, err, io.ErrUnexpectedEOF)
					}
				}
			})
		}
	}
}

// Where there is no answer to hold, HoldAnswer returns false and does nothing.
func TestHoldAnswerWithoutAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, other, h := newCounter("a", 1), newCounter("b", 1), &Hold{}
		require.False(t, s.node.HoldAnswer(t.Context(), h))
		require.False(t, s.node.HoldAnswer(s.node.Context(), h))
		held := make(chan bool, 1)
		s.node.Go(func(ctx context.Context) error { held <- s.node.HoldAnswer(ctx, h); return nil })
		require.False(t, <-held, "a task has no answer")
		var ended context.Context
		s.does(func(ctx context.Context) error {
			ended = ctx //nolint:fatcontext // it is used afterwards
			require.False(t, other.node.HoldAnswer(ctx, h), "it is another node's call")
			s.node.EndTurn(ctx)
			return s.node.Do(ctx, func(ctx context.Context) error {
				require.False(t, s.node.HoldAnswer(ctx, h), "Do has no answer")
				return nil
			})
		})
		require.NoError(t, s.call(t.Context()))
		require.False(t, s.node.HoldAnswer(ended, h), "the method has returned")
		s.does(func(ctx context.Context) error { s.node.HoldAnswer(ctx, nil); return nil })
		require.Equal(t, connect.CodeInternal, connect.CodeOf(s.call(t.Context())))
	})
}

// Interceptors see the answer when the method returns, and may hold it too.
func TestInterceptorHoldsAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		of, own := &Hold{}, &Hold{}
		s, _ := holding(Limits{}, only(of))
		saw := false
		s.intercepted(func(next Invoke) Invoke {
			return func(ctx context.Context, in *Invocation) error {
				require.True(t, s.node.HoldAnswer(ctx, own))
				err := next(ctx, in)
				saw = in.Response != nil
				return err
			}
		})
		f := s.future(numbered(t.Context(), 1))
		synctest.Wait()
		require.True(t, saw)
		of.Release(nil)
		synctest.Wait()
		require.False(t, f.f.isDone(), "the interceptor's Hold is not released")
		own.Release(nil)
		_, err := f.Get(t.Context())
		require.NoError(t, err)
	})
}

// A method may release the Hold of its own answer, and those of calls before it.
func TestReleaseInTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &Hold{}
		s := newCounter("a", 1)
		s.does(func(ctx context.Context) error { s.node.HoldAnswer(ctx, h); return nil })
		first := s.future(t.Context())
		synctest.Wait()
		s.does(func(ctx context.Context) error {
			s.node.HoldAnswer(ctx, h)
			h.Release(nil)
			return nil
		})
		require.NoError(t, s.call(t.Context()))
		_, err := first.Get(t.Context())
		require.NoError(t, err)
		require.Equal(t, 1, heldTurns(t, s))
	})
}

// The end of a node waits for the release, and names the calls if it takes too long. Then, and if
// the node ends without grace, their callers get an error at once.
func TestStopWithHeldAnswers(t *testing.T) {
	calls := func(t *testing.T, s *stub) (ends chan error, n int) {
		t.Helper()
		ends = make(chan error, 20)
		for _, call := range heldWays(s) {
			for range 2 {
				n++
				go func() { ends <- call(numbered(t.Context(), 1)) }()
			}
		}
		synctest.Wait()
		require.Empty(t, ends)
		return ends, n
	}
	unavailable := func(t *testing.T, ends chan error, n int) {
		t.Helper()
		for range n {
			err := <-ends
			require.Equal(t, connect.CodeUnavailable, connect.CodeOf(err), "%v", err)
			require.ErrorContains(t, err, "a stopped while it held the answer of")
		}
	}
	synctest.Test(t, func(t *testing.T) { // in time
		h := &Hold{}
		s, _ := holding(Limits{MaxStreams: 8}, only(h))
		ends, n := calls(t, s)
		s.node.Go(func(ctx context.Context) error { <-ctx.Done(); assert.NoError(t, h.Err()); return nil })
		time.AfterFunc(time.Second, func() { h.Release(nil) })
		require.NoError(t, s.node.drain(t.Context(), errors.New("stopped")))
		for range n {
			require.NoError(t, <-ends)
		}
	})
	synctest.Test(t, func(t *testing.T) { // too late
		h := &Hold{}
		s, _ := holding(Limits{MaxStreams: 8}, only(h))
		ends, n := calls(t, s)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		begun := time.Now()
		err := s.node.drain(ctx, errors.New("stopped"))
		require.Equal(t, time.Minute, time.Since(begun), "the end waited longer than it had to")
		require.ErrorContains(t, err, "8 calls were still running and 0 waiting")
		require.ErrorContains(t, err, "Incr (its answer is held back) 6 times")
		unavailable(t, ends, n)
		require.Zero(t, s.node.mailbox.Stats().Running)
		h.Release(nil)
	})
	synctest.Test(t, func(t *testing.T) { // without grace
		h := &Hold{}
		s, _ := holding(Limits{MaxStreams: 8}, only(h))
		ends, n := calls(t, s)
		s.node.cancelLife(ErrClosed)
		unavailable(t, ends, n)
		// A call that comes later is not held.
		for way, call := range heldWays(s) {
			require.Equal(t, connect.CodeUnavailable, connect.CodeOf(call(numbered(t.Context(), 1))), way)
		}
		synctest.Wait()
		require.Zero(t, heldIn(h))
		require.Zero(t, s.node.mailbox.Stats().Running)
	})
}

// Very many answers are held and released at once. Before and after there are no goroutines and no
// memory.
func TestManyHeldAnswers(t *testing.T) {
	const calls = 20_000
	s, _ := holding(Limits{MaxPending: calls + 1}, nil)
	h := &Hold{}
	res := &storagev1.IncrResponse{}
	s.take = func(ctx context.Context, _ *storagev1.IncrRequest) (*storagev1.IncrResponse, error) {
		if !s.node.HoldAnswer(ctx, h) {
			return nil, io.ErrUnexpectedEOF
		}
		return res, nil
	}
	wait := func(what string, is func() bool) {
		t.Helper()
		require.Eventually(t, is, time.Minute, time.Millisecond, what)
	}
	memory := func() int64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	round := func(end func(cancel func(), futures []*Future[*storagev1.IncrResponse])) {
		h = &Hold{}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		goroutines := runtime.NumGoroutine()
		futures := make([]*Future[*storagev1.IncrResponse], calls)
		for i := range futures {
			futures[i] = s.future(ctx)
		}
		wait("they did not run", func() bool { return heldIn(h) == calls })
		wait("goroutines wait for the release", func() bool { return runtime.NumGoroutine() < goroutines+10 })
		end(cancel, futures)
		wait("the node has calls still", func() bool { return s.node.mailbox.Stats().Running == 0 })
		wait("goroutines are left", func() bool { return runtime.NumGoroutine() < goroutines+10 })
		require.Zero(t, heldIn(h))
	}
	released := func(_ func(), futures []*Future[*storagev1.IncrResponse]) {
		h.Release(nil)
		_, err := Gather(t.Context(), futures...)
		require.NoError(t, err)
	}
	ended := func(cancel func(), futures []*Future[*storagev1.IncrResponse]) {
		cancel()
		for _, f := range futures {
			_, err := f.Get(t.Context())
			require.Equal(t, connect.CodeCanceled, connect.CodeOf(err))
		}
	}
	round(released)
	round(ended) // the end of a context starts a goroutine per future, whose records Go never frees
	runtime.GC()
	before := memory()
	for range 2 {
		round(released)
		round(ended)                                                                        // the Hold is never released
		wait("memory is left of the calls", func() bool { return memory()-before < 1<<20 }) // futures have cleanups
	}
	runtime.KeepAlive(h)
}

// Releases, ends of contexts and the end of the node race with the methods. Every call has one
// outcome, and nothing is left.
func TestHoldsRace(t *testing.T) {
	for round := range 30 {
		holds := []*Hold{{}, {}, {}}
		s, _ := holding(Limits{MaxConcurrency: 2, MaxStreams: 64}, func(i int) []*Hold { return []*Hold{holds[i%3], holds[i%2]} })
		var all sync.WaitGroup
		for i := range 60 {
			for _, call := range heldWays(s) {
				all.Go(func() {
					ctx, cancel := context.WithCancel(t.Context())
					defer cancel()
					if i%3 == 0 {
						all.Go(func() {
							for range rand.IntN(20) {
								runtime.Gosched()
							}
							cancel()
						})
					}
					switch err := call(numbered(ctx, i)); connect.CodeOf(err) {
					case connect.CodeCanceled, connect.CodeUnavailable, connect.CodeAborted, connect.CodeResourceExhausted:
					default:
						assert.NoError(t, err)
					}
				})
			}
		}
		for i, h := range holds {
			all.Go(func() {
				for range rand.IntN(100) {
					runtime.Gosched()
				}
				if i == 2 {
					h.Release(connect.NewError(connect.CodeAborted, "on purpose"))
				} else {
					h.Release(nil)
				}
			})
		}
		if round%2 == 0 {
			all.Go(func() { runtime.Gosched(); s.node.cancelLife(ErrClosed) })
		}
		all.Wait()
		require.Eventually(t, func() bool { return s.node.mailbox.Stats().Running == 0 }, time.Minute, time.Millisecond, "calls are left in the node")
	}
}

// heldCall is a call of the model below.
type heldCall struct {
	future *Future[*storagev1.IncrResponse]
	holds  []int
	over   connect.Code // 0 while it is held or queued
}

// TestHoldsAgreeWithTheirModel runs random sequences of calls, releases, cancellations and the end
// of the node, and predicts which calls are over and how.
func TestHoldsAgreeWithTheirModel(t *testing.T) {
	const holdCount = 4
	rapid.Check(t, func(rt *rapid.T) {
		script := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) [3]int {
			return [3]int{rapid.IntRange(0, 9).Draw(t, "do"), rapid.IntRange(0, 63).Draw(t, "pick"), rapid.IntRange(0, 63).Draw(t, "other")}
		}), 1, 40).Draw(rt, "script")
		var failure string
		synctest.Test(t, func(t *testing.T) { failure = playHolds(t.Context(), holdCount, script) })
		if failure != "" {
			rt.Fatal(failure)
		}
	})
}

func playHolds(ctx context.Context, count int, script [][3]int) string {
	holds := make([]*Hold, count)
	released := make([]connect.Code, count) // 0: not yet; none: without an error
	const none = connect.Code(1000)
	for i := range holds {
		holds[i] = &Hold{}
	}
	var calls []*heldCall
	s, _ := holding(Limits{}, func(i int) (list []*Hold) {
		for _, h := range calls[i].holds {
			list = append(list, holds[h])
		}
		return list
	})
	stopped := false
	predict := func() {
		for _, c := range calls {
			if c.over != 0 {
				continue
			}
			waits := false
			for _, h := range c.holds {
				if released[h] == 0 {
					waits = true
					break
				}
				if released[h] != none {
					c.over = released[h]
					break
				}
			}
			switch {
			case c.over != 0:
			case !waits:
				c.over = none
			case stopped:
				c.over = connect.CodeUnavailable
			}
		}
	}
	defer func() {
		for _, h := range holds {
			h.Release(nil)
		}
		synctest.Wait()
		for _, c := range calls {
			_, _ = c.future.Get(ctx)
		}
	}()
	for at, step := range script {
		switch pick := step[1]; {
		case step[0] < 5:
			c := &heldCall{holds: []int{pick % count, pick / count % count}}
			calls = append(calls, c)
			c.future = s.incr.async(numbered(ctx, len(calls)-1), s.ref, nil)
			synctest.Wait()
		case step[0] < 7:
			h := pick % count
			var err error
			code := none
			if step[2]%3 == 0 {
				code = connect.CodeAborted
				err = connect.NewError(code, "on purpose")
			}
			holds[h].Release(err)
			if released[h] == 0 {
				released[h] = code
			}
		case step[0] < 9 && len(calls) > 0:
			c := calls[pick%len(calls)]
			c.future.Cancel()
			if c.over == 0 {
				c.over = connect.CodeCanceled
			}
		case step[0] == 9 && step[2]%4 == 0:
			s.node.cancelWork(errors.New("stopped"))
			stopped = true
		}
		predict()
		synctest.Wait()
		held := 0
		for i, c := range calls {
			if c.over == 0 {
				held++
			}
			if c.future.f.isDone() != (c.over != 0) {
				return fmt.Sprintf("step %d: call %d, of the holds %v, is over: %v; released are %v", at, i, c.holds, c.future.f.isDone(), released)
			}
			if c.over == 0 {
				continue
			}
			res, err := c.future.Get(ctx)
			switch {
			case c.over == none && (err != nil || res.GetId() != uint64(i)):
				return fmt.Sprintf("step %d: call %d got %v, %v", at, i, res, err)
			case c.over != none && connect.CodeOf(err) != c.over:
				return fmt.Sprintf("step %d: call %d got the error %v, not %v", at, i, err, c.over)
			}
		}
		listed := 0
		for _, h := range holds {
			listed += heldIn(h)
		}
		if running := s.node.mailbox.Stats().Running; running != held || listed != held {
			return fmt.Sprintf("step %d: %d answers are held, the node has %d and the holds %d", at, held, running, listed)
		}
	}
	return ""
}

// A held answer costs one allocation, and a goroutine only where the call has one anyway.
func TestHoldAnswerAllocates(t *testing.T) {
	if invariants.Messages {
		t.Skip("messages are hashed")
	}
	s, h, res := newCounter("a", 1), &Hold{}, &storagev1.IncrResponse{}
	holds := false
	s.take = func(ctx context.Context, _ *storagev1.IncrRequest) (*storagev1.IncrResponse, error) {
		if holds {
			s.node.HoldAnswer(ctx, h)
		}
		return res, nil
	}
	req := &storagev1.IncrRequest{}
	inline := func() { _, _ = s.incr.call(t.Context(), s.ref, req) }
	async := func() {
		f := s.incr.async(t.Context(), s.ref, req)
		for holds && heldIn(h) == 0 {
			runtime.Gosched()
		}
		if holds {
			released := h
			h = &Hold{}
			released.Release(nil)
		}
		_, _ = f.Get(t.Context())
	}
	plainInline, plainAsync := testing.AllocsPerRun(100, inline), testing.AllocsPerRun(100, async)
	holds = true
	require.LessOrEqual(t, testing.AllocsPerRun(100, async), plainAsync+2, "the held answer, and the Hold of this test")
	h.Release(nil)
	_ = h.Done()
	require.LessOrEqual(t, testing.AllocsPerRun(100, inline), plainInline+1)
}

// An answer must not be modified while it is held.
func TestHeldAnswerIsModified(t *testing.T) {
	if !invariants.Messages {
		t.Skip("messages are not hashed")
	}
	synctest.Test(t, func(t *testing.T) {
		for name := range heldWays(newCounter("a", 1)) {
			h, res := &Hold{}, &storagev1.IncrResponse{}
			has := &storagev1.HasResponse{}
			s := newCounter("a", 1)
			s.take = func(ctx context.Context, _ *storagev1.IncrRequest) (*storagev1.IncrResponse, error) {
				s.node.HoldAnswer(ctx, h)
				return res, nil
			}
			s.concurrent = func(ctx context.Context, _ *storagev1.HasRequest) (*storagev1.HasResponse, error) {
				s.node.HoldAnswer(ctx, h)
				return has, nil
			}
			over := make(chan error, 1)
			go func() { over <- heldWays(s)[name](t.Context()) }()
			synctest.Wait()
			res.Id, has.Has = 1, true
			h.Release(nil)
			err := <-over
			require.Equal(t, connect.CodeInternal, connect.CodeOf(err), name)
			require.ErrorContains(t, err, "was changed while it was held back", name)
		}
	})
}
