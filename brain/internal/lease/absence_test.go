//go:build !unguarded

package lease

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func TestNobodyDiesForTheWatchersOwnAbsence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { require.Empty(t, absent(t).all()) })
}

// While the watcher stood still its hosts gave their connections up: the ends of the old ones are
// read only afterwards, and the new ones come late.
func TestConnectionThatBreaksAfterALongAbsenceIsNoDeath(t *testing.T) {
	for _, brokenFirst := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			w, d := watching(t)
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
			// From then on everything is as before.
			s.Broken()
			later(grace + 2*tick)
			_, dead = d.of("a")
			require.True(t, dead)
		})
	}
}

func TestDeathAfterAHiccupIsNoticedSoon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, d := watching(t)
		s := attach(t, w, "a")
		hiccup := tick + absence(grace) + time.Millisecond
		last := time.Now().Add(-hiccup)
		w.sweep(time.Now(), &last)
		s.Broken()
		later(grace + 2*hiccup + 2*tick)
		_, dead := d.of("a")
		require.True(t, dead)
	})
}
