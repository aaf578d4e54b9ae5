package tunnel

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// ticking drives a keepalive with a clock of the test's own.
type ticking struct {
	keepalive

	elapsed time.Duration
}

func newTicking(interval time.Duration) *ticking {
	t := &ticking{keepalive: keepalive{interval: interval}}
	t.reset(t.now())
	return t
}

// origin has a reading of the monotonic clock, which time.Date's results have not.
var origin = time.Now()

// now is a time of both clocks.
func (t *ticking) now() time.Time { return origin.Add(t.elapsed) }

// pass lets a period pass, and more.
func (t *ticking) pass(late time.Duration, traffic bool) keepaliveAction {
	t.elapsed += t.period() + late
	return t.tick(t.now(), traffic)
}

// untilLost lets ticks come in time, without traffic, until the peer is given up. It returns when
// it was pinged and when it was lost.
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

// TestPeerIsNotLostForAStopOfThisProcess stops the process at every tick of a silence, for several
// times: the peer has a whole interval after each stop.
func TestPeerIsNotLostForAStopOfThisProcess(t *testing.T) {
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

func TestPeerThatIsReadAfterAStopIsNotPinged(t *testing.T) {
	k := newTicking(5 * time.Second)
	require.Equal(t, peerAlive, k.pass(time.Hour, true))
	require.Equal(t, peerAlive, k.pass(0, false))
}

// TestTicksThatAreALittleLateCount: a loaded machine does not keep a silent peer.
func TestTicksThatAreALittleLateCount(t *testing.T) {
	k := newTicking(5 * time.Second)
	for range 2*ticksPerInterval - 1 {
		require.NotEqual(t, peerLost, k.pass(minLateness, false))
	}
	require.Equal(t, peerLost, k.pass(minLateness, false))
}

// TestSuspendedMachineIsNoticedByTheWallClock: the monotonic clock stands still meanwhile.
func TestSuspendedMachineIsNoticedByTheWallClock(t *testing.T) {
	k := newTicking(5 * time.Second)
	for range 2*ticksPerInterval - 1 {
		require.NotEqual(t, peerLost, k.pass(0, false))
	}
	k.elapsed += k.period()
	wall := k.now().Round(0).Add(time.Hour)
	require.Equal(t, peerSilent, k.tick(wall, false))
}
