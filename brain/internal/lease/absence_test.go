package lease

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func TestNoHostDiesForTheWatchersOwnAbsence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { require.Empty(t, absent(t).all()) })
}

// TestBrokenConnectionAfterALongAbsenceIsNoDeath has hosts that closed their connections while the
// watcher was suspended: it reads the end of the old ones only afterwards, and the new ones are
// late.
func TestBrokenConnectionAfterALongAbsenceIsNoDeath(t *testing.T) {
	for _, brokenFirst := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			w, d := newWatch(t)
			s := attach(t, w, "a")
			attach(t, w, "gone")
			last := time.Now().Add(-80 * time.Second)
			if brokenFirst {
				s.Broken() // read before the first tick
			}
			w.sweep(time.Now(), &last)
			s.Broken()
			later(lease) // a machine on which all hosts return at the same time is busy
			require.Empty(t, d.all())
			s = attach(t, w, "a")
			later(reattach + 2*tick)
			one, dead := d.of("gone")
			require.True(t, dead, "its lease was renewed once")
			require.Contains(t, one.cause, "no sign of life")
			s.Renew()
			require.Len(t, d.all(), 1)
			// From then on a broken connection has its usual grace again.
			s.Broken()
			later(grace + 2*tick)
			_, dead = d.of("a")
			require.True(t, dead)
		})
	}
}

func TestDeathAfterAShortAbsenceIsDetectedSoon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, d := newWatch(t)
		s := attach(t, w, "a")
		pause := tick + absence(grace) + time.Millisecond
		last := time.Now().Add(-pause)
		w.sweep(time.Now(), &last)
		s.Broken()
		later(grace + 2*pause + 2*tick)
		_, dead := d.of("a")
		require.True(t, dead)
	})
}
