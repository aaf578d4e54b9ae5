package mailbox

import (
	"context"
	"errors"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"connectrpc.com/connect/v2"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/raylink/raylink/internal/connecterr"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestMailboxAgreesWithItsModel runs random scripts.
func TestMailboxAgreesWithItsModel(t *testing.T) {
	steps := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) step {
		// Steps that end a script are rarer than others.
		do := action(rapid.IntRange(0, int(actions)-1).Draw(t, "do"))
		if do >= closed && rapid.IntRange(0, 5).Draw(t, "really") > 0 {
			do = enqueue
		}
		return step{do: do, pick: rapid.IntRange(0, 49).Draw(t, "pick")}
	}), 1, 60)
	rapid.Check(t, func(rt *rapid.T) {
		limits := modelLimits
		limits.Turns = rapid.IntRange(1, 3).Draw(rt, "turns")
		script := steps.Draw(rt, "script")
		if rapid.IntRange(0, 3).Draw(rt, "opens late") > 0 {
			script = append([]step{{do: open}}, script...)
		}
		var err error
		synctest.Test(t, func(*testing.T) { err = runScript(limits, script) })
		if err != nil {
			rt.Fatal(err)
		}
	})
}

// One caller's calls keep their order while others arrive, yield their turn, are canceled or end
// their goroutines concurrently.
func TestOrderUnderLoad(t *testing.T) {
	const callers, calls = 8, 300
	m := New(func() string { return "m" }, Limits{Turns: 1, Pending: 1 << 20, Bytes: 1 << 40, Concurrent: 1})
	m.Open()
	var inside atomic.Int32
	var last [callers]int // guarded by the turn
	var all sync.WaitGroup
	serve := func(turn *Turn, caller, call int) {
		assert.Equal(t, int32(1), inside.Add(1), "two calls hold the only turn")
		assert.Less(t, last[caller], call, "a later call ran first")
		last[caller] = call
		inside.Add(-1)
		switch {
		case call%13 == 0:
			turn.GiveBack()
			runtime.Gosched()
			assert.False(t, turn.Held())
		case call%7 == 0:
			turn.Suspend()
			runtime.Gosched()
			turn.Resume()
			assert.True(t, turn.Held())
			assert.Equal(t, int32(1), inside.Add(1), "two calls hold the only turn")
			inside.Add(-1)
		}
	}
	for caller := range callers {
		all.Go(func() {
			for call := 1; call <= calls; call++ {
				switch call % 4 {
				case 0:
					ctx, cancel := context.WithCancel(t.Context())
					go cancel()
					var turn Turn
					if m.Acquire(ctx, &turn, "acquire") == nil {
						serve(&turn, caller, call)
						turn.Release()
					}
				case 1:
					var turn Turn
					if m.TryTurn(&turn, nil) {
						serve(&turn, caller, call)
						turn.Release()
						continue
					}
					fallthrough
				default:
					all.Add(1)
					w := &work{run: func(turn *Turn) {
						defer all.Done()
						serve(turn, caller, call)
						if call%5 == 0 {
							runtime.Goexit()
						}
					}}
					w.entry.Work = w
					_, err := m.Enqueue(&w.entry)
					if !assert.NoError(t, err) { //nolint:testifylint // require ends no test from this goroutine
						return
					}
					if call%11 == 0 && m.Remove(&w.entry) {
						all.Done()
					}
				}
			}
		})
	}
	all.Wait()
	m.Close(errClosed)
	require.NoError(t, m.Drain(t.Context()))
	require.Zero(t, m.Stats().Running+m.Stats().Waiting)
}

type work struct {
	entry Entry
	run   func(*Turn)
}

func (w *work) Run(turn *Turn) { w.run(turn) }
func (w *work) Refuse(error)   {}

// A turn that several goroutines have suspended is held again when all of them have resumed; the
// first ones wait for the others.
func TestTurnSuspendedTwice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := New(func() string { return "m" }, modelLimits)
		m.Open()
		var turn, other Turn
		require.True(t, m.TryTurn(&turn, nil))
		turn.Suspend()
		turn.Suspend()
		var back atomic.Int32
		for range 2 {
			require.True(t, m.TryTurn(&other, nil), "the turn was not released")
			go func() {
				turn.Resume()
				back.Add(1)
			}()
			synctest.Wait()
			require.Zero(t, back.Load())
			other.Release()
			synctest.Wait()
		}
		require.Equal(t, int32(2), back.Load())
		require.True(t, turn.Held())
		turn.Release()
		require.True(t, m.TryTurn(&other, nil), "the turn is lost")
		other.Release()
	})
}

// A goroutine that outlives its method may suspend the turn that the method had. That changes
// nothing: the mailbox still has one turn, and it is free.
func TestTurnSuspendedAfterItsWork(t *testing.T) {
	m := New(func() string { return "m" }, Limits{Turns: 1, Pending: 1, Bytes: 1, Concurrent: 1})
	m.Open()
	var turn, next Turn
	require.True(t, m.TryTurn(&turn, nil))
	turn.Release()
	turn.Suspend()
	require.True(t, m.TryTurn(&next, nil))
	var other Turn
	require.False(t, m.TryTurn(&other, nil), "two hold the only turn")
	next.Release()
}

// A turn is passed on at once when it is given back, whether work runs on its caller's goroutine or
// on one of the mailbox, and once only. The mailbox waits for the work all the same.
func TestTurnGivenBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := New(func() string { return "m" }, modelLimits)
		m.Open()
		var turn, next, other Turn
		require.True(t, m.TryTurn(&turn, nil))
		var ran []int
		release := make(chan struct{})
		for i := range 3 {
			w := &work{run: func(turn *Turn) {
				ran = append(ran, i)
				turn.GiveBack()
				turn.GiveBack()
				<-release
			}}
			w.entry.Work = w
			_, err := m.Enqueue(&w.entry)
			require.NoError(t, err)
		}
		turn.GiveBack()
		turn.GiveBack()
		synctest.Wait()
		require.Equal(t, []int{0, 1, 2}, ran, "the queue did not continue")
		require.Equal(t, Stats{Running: 4}, m.Stats())
		require.NoError(t, m.Acquire(t.Context(), &next, "Do"), "the bound is for callers, not for the node's own code")
		require.False(t, m.TryTurn(&other, nil), "two hold the only turn")
		next.Release()
		m.Close(errClosed)
		drained := make(chan error, 1)
		go func() { drained <- m.Drain(t.Context()) }()
		turn.Release()
		synctest.Wait()
		require.Empty(t, drained, "the mailbox ended before its work")
		close(release)
		require.NoError(t, <-drained)
		require.Equal(t, Stats{Finished: 5}, m.Stats())
	})
}

// The errors of full mailboxes name the node, the bound and the oldest call.
func TestFullMailboxNamesItsBound(t *testing.T) {
	m := New(func() string { return "counter-0" }, Limits{Turns: 1, Pending: 2, Bytes: 100, Concurrent: 1})
	put := func(label string, bytes int64) error {
		_, err := m.Enqueue(&Entry{Work: &player{}, Label: label, Bytes: bytes})
		return err
	}
	if err := put("Add", 1000); err != nil {
		t.Fatal("one alone is taken, however large:", err)
	}
	want := "the mailbox of counter-0 is full: the calls that wait take 1000 bytes, and Mul with 7 more would pass its bound of 100; the oldest is Add"
	if err := put("Mul", 7); connect.CodeOf(err) != connect.CodeResourceExhausted || connecterr.Text(err) != want {
		t.Fatal(err)
	}
	m = New(m.owner, m.limits)
	if err := errors.Join(put("Add", 1), put("Mul", 1)); err != nil {
		t.Fatal(err)
	}
	want = "the mailbox of counter-0 is full: 2 calls wait, the most it takes (max_pending); the oldest is Add"
	if err := put("Mul", 7); connect.CodeOf(err) != connect.CodeResourceExhausted || connecterr.Text(err) != want {
		t.Fatal(err)
	}
	// Work that has given its turn back counts, and is older than all that waits.
	fill := func(m *Mailbox, p *player) {
		m.Open()
		p.turn = &Turn{}
		require.True(t, m.TryTurn(p.turn, p))
		p.turn.GiveBack()
	}
	m = New(m.owner, m.limits)
	fill(m, &player{name: "Put"})
	fill(m, &player{name: "Get"})
	want = "the mailbox of counter-0 is full: 0 calls wait and 2 have given their turn back and are not answered, " +
		"the most it takes (max_pending); the oldest is Put"
	if err := put("Mul", 7); connect.CodeOf(err) != connect.CodeResourceExhausted || connecterr.Text(err) != want {
		t.Fatal(err)
	}
	require.False(t, m.TryTurn(new(Turn), nil), "inline calls were not bounded")
	m = New(m.owner, m.limits)
	fill(m, &player{name: "Put", entry: Entry{Bytes: 1000}})
	want = "the mailbox of counter-0 is full: the calls that wait or have given their turn back take 1000 bytes, " +
		"and Mul with 7 more would pass its bound of 100; the oldest is Put"
	if err := put("Mul", 7); connect.CodeOf(err) != connect.CodeResourceExhausted || connecterr.Text(err) != want {
		t.Fatal(err)
	}
	require.False(t, m.TryTurn(new(Turn), &player{entry: Entry{Bytes: 7}}), "inline calls were not bounded")
	m = New(m.owner, m.limits)
	if err := m.Enter(new(Turn), "Watch", nil); err != nil {
		t.Fatal(err)
	}
	want = "counter-0 runs 1 concurrent methods and streams, the most it may (max_streams): Watch is refused"
	if err := m.Enter(new(Turn), "Watch", nil); connect.CodeOf(err) != connect.CodeResourceExhausted || connecterr.Text(err) != want {
		t.Fatal(err)
	}
}

// gated runs until its gate is open.
type gated struct{ began, gate chan struct{} }

func (g gated) Run(*Turn) {
	close(g.began)
	<-g.gate
}

func (gated) Refuse(error) {}

// TestRunningListsWhatRuns covers queued calls that got a turn, inline calls and concurrent ones.
func TestRunningListsWhatRuns(t *testing.T) {
	m := New(func() string { return "counter-0" }, Limits{Turns: 2, Pending: 9, Bytes: 9, Concurrent: 9})
	m.Open()
	first, second := gated{make(chan struct{}), make(chan struct{})}, gated{make(chan struct{}), make(chan struct{})}
	_, err := m.Enqueue(&Entry{Work: first, Label: "Add"})
	require.NoError(t, err)
	<-first.began
	var turn, mark Turn
	require.True(t, m.TryTurn(&turn, "with a caller's"))
	require.NoError(t, m.Enter(&mark, "Watch", "concurrent"))
	_, err = m.Enqueue(&Entry{Work: second, Label: "Add"})
	require.NoError(t, err)
	require.Equal(t, []any{first, "with a caller's", "concurrent"}, m.Running(), "a queued call does not run")
	m.Leave(&mark)
	require.Equal(t, []any{first, "with a caller's"}, m.Running())
	turn.Suspend() // a call that has suspended its turn still runs
	<-second.began
	require.Equal(t, []any{first, "with a caller's", second}, m.Running())
	close(second.gate)
	turn.Resume()
	turn.GiveBack()
	require.Equal(t, []any{first, "with a caller's"}, m.Running(), "a call that has given its turn back still runs")
	turn.Release()
	require.Equal(t, []any{first}, m.Running())
	close(first.gate)
	m.Close(errors.New("closed"))
	require.NoError(t, m.Drain(t.Context()))
	require.Empty(t, m.Running())
}
