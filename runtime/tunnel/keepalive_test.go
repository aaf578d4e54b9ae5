package tunnel

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// ticking drives a keepalive with a fake clock.
type ticking struct {
	keepalive

	elapsed time.Duration
}

func newTicking(interval time.Duration) *ticking {
	t := &ticking{keepalive: keepalive{interval: interval}}
	t.reset(t.now())
	return t
}

// origin includes a monotonic clock reading, which the results of time.Date lack.
var origin = time.Now()

// now returns the current time by both clocks.
func (t *ticking) now() time.Time { return origin.Add(t.elapsed) }

// pass advances the clocks by a period and lateness.
func (t *ticking) pass(late time.Duration, traffic bool) keepaliveAction {
	t.elapsed += t.period() + late
	return t.tick(t.now(), traffic)
}

// untilLost ticks punctually and without traffic until the peer is lost. It returns when the peer
// was pinged and when it was lost.
func (t *ticking) untilLost(tb testing.TB) (pinged, lost time.Duration) {
	tb.Helper()
	begin := t.elapsed
	for range 10 * ticksPerInterval {
		switch t.pass(0, false) {
		case peerAlive:
		case peerSilent:
			pinged = t.elapsed - begin
		case peerLost:
			return pinged, t.elapsed - begin
		}
	}
	tb.Fatal("a silent peer was never given up")
	return 0, 0
}

func TestSilentPeerIsPingedThenLost(t *testing.T) {
	k := newTicking(5 * time.Second)
	require.Equal(t, peerAlive, k.pass(0, true))
	pinged, lost := k.untilLost(t)
	require.Equal(t, 5*time.Second, pinged)
	require.Equal(t, 10*time.Second, lost)
}

func TestPeerThatAnswersAPingIsNotLost(t *testing.T) {
	k := newTicking(time.Second)
	for range 10 {
		for range 2*ticksPerInterval - 1 {
			require.NotEqual(t, peerLost, k.pass(0, false))
		}
		require.Equal(t, peerAlive, k.pass(0, true))
	}
}

// TestPeerIsNotLostWhileThisProcessIsStopped stops the process at each tick of a silence, several
// times in a row: after each stop the peer has a full interval to answer.
func TestPeerIsNotLostWhileThisProcessIsStopped(t *testing.T) {
	for silent := range 2 * ticksPerInterval {
		k := newTicking(5 * time.Second)
		require.Equal(t, peerAlive, k.pass(0, true))
		for range silent {
			require.NotEqual(t, peerLost, k.pass(0, false))
		}
		for range 3 {
			require.NotEqual(t, peerLost, k.pass(time.Hour, false), "after %d ticks of silence", silent)
		}
		stopped := k.elapsed
		_, lost := k.untilLost(t)
		require.GreaterOrEqual(t, lost, 5*time.Second, "after %d ticks of silence", silent)
		require.LessOrEqual(t, k.elapsed-stopped, 10*time.Second)
	}
}

func TestPeerWithTrafficAfterStopIsNotPinged(t *testing.T) {
	k := newTicking(5 * time.Second)
	require.Equal(t, peerAlive, k.pass(time.Hour, true))
	require.Equal(t, peerAlive, k.pass(0, false))
}

// TestSlightlyLateTicksCount: a silent peer is detected on a loaded machine too.
func TestSlightlyLateTicksCount(t *testing.T) {
	k := newTicking(5 * time.Second)
	for range 2*ticksPerInterval - 1 {
		require.NotEqual(t, peerLost, k.pass(minLateness, false))
	}
	require.Equal(t, peerLost, k.pass(minLateness, false))
}

// TestSuspensionIsDetectedByWallClock: the monotonic clock does not advance during suspension.
func TestSuspensionIsDetectedByWallClock(t *testing.T) {
	k := newTicking(5 * time.Second)
	for range 2*ticksPerInterval - 1 {
		require.NotEqual(t, peerLost, k.pass(0, false))
	}
	k.elapsed += k.period()
	wall := k.now().Round(0).Add(time.Hour)
	require.Equal(t, peerSilent, k.tick(wall, false))
}
