package tunnel

import (
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// watchedFake is a connection that records what its Watchdog does.
type watchedFake struct {
	mu          sync.Mutex
	now         readActivity
	toSweep     int
	watched     bool
	replaced    []uint64
	interrupted []uint64
	ticks       int
}

func (f *watchedFake) activity() readActivity {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.now
}

func (f *watchedFake) replaceReadLoop(epoch uint64) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.replaced = append(f.replaced, epoch)
	f.now.inlineEpoch++
	return true
}

func (f *watchedFake) interruptReader(epoch uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.interrupted = append(f.interrupted, epoch)
}

func (f *watchedFake) sweep(scratch []sweptCall) (_ []sweptCall, empty bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ticks++
	f.toSweep = max(f.toSweep-1, 0)
	return scratch, f.toSweep == 0
}

func (f *watchedFake) setWatched(now bool) (before bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	before, f.watched = f.watched, now
	return before
}

// set changes the activity, as a connection on which something begins does.
func (f *watchedFake) set(w *Watchdog, change func(*readActivity)) {
	f.mu.Lock()
	change(&f.now)
	watched := f.watched
	f.mu.Unlock()
	if !watched {
		w.add(f)
	}
}

// seen returns a copy of what has been recorded.
func (f *watchedFake) seen() *watchedFake {
	f.mu.Lock()
	defer f.mu.Unlock()
	return &watchedFake{watched: f.watched, replaced: slices.Clone(f.replaced), interrupted: slices.Clone(f.interrupted), ticks: f.ticks}
}

// count returns the number of registered connections.
func (w *Watchdog) count() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.conns)
}

// after lets n ticks pass.
func after(n int) {
	<-time.After(time.Duration(n)*watchdogPeriod + watchdogPeriod/2)
}

func TestWatchdogReplacesALoopThatStaysInAHandler(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var w Watchdog
		f := &watchedFake{}
		f.set(&w, func(a *readActivity) { a.inlineEpoch = 7 })
		after(2)
		require.Equal(t, []uint64{7}, f.seen().replaced, "within two ticks, and once")
		after(10)
		require.Len(t, f.seen().replaced, 1, "the next loop runs no handler")
		after(watchdogIdleTicks)
	})
}

func TestWatchdogLeavesShortHandlersAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var w Watchdog
		f := &watchedFake{}
		f.set(&w, func(a *readActivity) { a.inlineEpoch = 1 })
		<-time.After(watchdogPeriod / 4)
		for range 100 { // each tick finds another handler
			f.set(&w, func(a *readActivity) { a.inlineEpoch += 2 })
			<-time.After(watchdogPeriod / 2)
		}
		require.Empty(t, f.seen().replaced)
		f.set(&w, func(a *readActivity) { a.inlineEpoch++ })
		after(2 * watchdogIdleTicks)
	})
}

func TestWatchdogInterruptsACallerThatKeepsReading(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var w Watchdog
		f := &watchedFake{}
		f.set(&w, func(a *readActivity) { a.ownerEpoch = 3 })
		after(2)
		require.Contains(t, f.seen().interrupted, uint64(3))
		after(3 * watchdogIdleTicks)
		require.True(t, f.seen().watched, "a connection that a caller reads stays watched")
		f.set(&w, func(a *readActivity) { a.ownerEpoch++ })
		after(2 * watchdogIdleTicks)
	})
}

// TestWatchdogOfIdleConnectionsRests: it has no timer, and begins again with the next activity.
func TestWatchdogOfIdleConnectionsRests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var w Watchdog
		f := &watchedFake{toSweep: 20}
		f.set(&w, func(a *readActivity) { a.calls++ })
		after(20 + watchdogIdleTicks - 3)
		require.True(t, f.seen().watched)
		after(6)
		require.False(t, f.seen().watched)
		require.Zero(t, w.count())
		ticks := f.seen().ticks
		<-time.After(time.Hour)
		require.Equal(t, ticks, f.seen().ticks)
		f.set(&w, func(a *readActivity) { a.calls++ })
		w.add(f) // once more does nothing
		require.Equal(t, 1, w.count())
		after(3)
		require.Greater(t, f.seen().ticks, ticks)
		after(2 * watchdogIdleTicks)
	})
}

func TestWatchdogSweepsEachOfItsConnections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var w Watchdog
		all := make([]*watchedFake, 20)
		for i := range all {
			all[i] = &watchedFake{}
			all[i].set(&w, func(a *readActivity) { a.calls++ })
		}
		after(1)
		for _, f := range all {
			require.Equal(t, 1, f.seen().ticks)
		}
		after(2 * watchdogIdleTicks)
	})
}
