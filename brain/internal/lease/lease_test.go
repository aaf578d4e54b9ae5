package lease

import (
	"context"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect/v2"
	"github.com/stretchr/testify/require"

	nodev1 "github.com/raylink/raylink/gen/raylink/node/v1"
)

const (
	lease = 10 * time.Second
	grace = 750 * time.Millisecond
	// reattach is how long a host takes to attach again on a busy machine.
	reattach = 5 * time.Second
	// tick bounds how late a death may be detected.
	tick = grace / 4
)

// deaths records the hosts that a Watch declares dead.
type deaths struct {
	mu   sync.Mutex
	list []death
	// hold, if it is set, blocks removals until it is closed.
	hold chan struct{}
}

type death struct {
	id, cause string
	after     time.Duration
}

func newWatch(t *testing.T) (*Watch, *deaths) {
	t.Helper()
	d, start := &deaths{}, time.Now()
	w := New(Options{Lease: lease, Grace: grace, Reattach: reattach, Died: func(ctx context.Context, host *nodev1.HostInfo, cause string) {
		d.mu.Lock()
		d.list = append(d.list, death{host.GetId(), cause, time.Since(start)})
		hold := d.hold
		d.mu.Unlock()
		if hold != nil {
			select {
			case <-hold:
			case <-ctx.Done():
			}
		}
	}})
	t.Cleanup(w.Close)
	return w, d
}

func (d *deaths) of(id string) (death, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, one := range d.list {
		if one.id == id {
			return one, true
		}
	}
	return death{}, false
}

func (d *deaths) all() []death {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.list)
}

func info(id string) *nodev1.HostInfo { return &nodev1.HostInfo{Id: id} }

// later advances the time.
func later(d time.Duration) {
	time.Sleep(d) //nolint:forbidigo // synctest's time, which does not wait
	synctest.Wait()
}

func attach(t *testing.T, w *Watch, id string) *Session {
	t.Helper()
	s, err := w.Attach(t.Context(), info(id))
	require.NoError(t, err)
	return s
}

func TestHostThatRenewsItsLeaseLives(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, d := newWatch(t)
		s := attach(t, w, "a")
		for range 20 {
			later(lease - time.Millisecond)
			s.Renew()
		}
		require.Empty(t, d.all())
	})
}

func TestSilentHostDiesWhenItsLeaseExpires(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, d := newWatch(t)
		s := attach(t, w, "a")
		later(lease - tick)
		require.Empty(t, d.all())
		later(3 * tick)
		one, dead := d.of("a")
		require.True(t, dead)
		require.Equal(t, "no sign of life for 10s", one.cause)
		<-s.Over()
		require.Equal(t, connect.CodeAborted, connect.CodeOf(s.Err()))
		s.Renew() // too late, and harmless
		later(time.Minute)
		require.Len(t, d.all(), 1)
	})
}

func TestBrokenConnectionIsToleratedWithinTheGrace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, d := newWatch(t)
		attach(t, w, "a").Broken()
		later(grace - time.Millisecond)
		s := attach(t, w, "a")
		later(5 * time.Second)
		require.Empty(t, d.all())
		s.Broken()
		later(grace + 2*tick)
		one, dead := d.of("a")
		require.True(t, dead)
		require.Equal(t, "connection closed", one.cause)
	})
}

func TestDeathOfAProcessIsDetectedWithinASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, d := newWatch(t)
		s := attach(t, w, "a")
		later(1234 * time.Millisecond)
		s.Broken()
		later(time.Second)
		_, dead := d.of("a")
		require.True(t, dead)
	})
}

func TestEndOfAnOldStreamDoesNotAffectTheNewOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, d := newWatch(t)
		first := attach(t, w, "a")
		second := attach(t, w, "a")
		<-first.Over()
		require.ErrorContains(t, first.Err(), "attached again")
		first.Broken()
		first.Goodbye()
		later(5 * time.Second)
		require.Empty(t, d.all())
		second.Goodbye()
		later(time.Minute)
		require.Empty(t, d.all(), "a host that ended gracefully was declared dead")
	})
}

func TestExpectedHostHasOneLeaseToAttach(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, d := newWatch(t)
		w.Expect(info("never"))
		w.Expect(info("in time"))
		w.Expect(nil)
		later(lease / 2)
		s := attach(t, w, "in time")
		w.Expect(info("in time"))
		later(lease/2 + 2*tick)
		one, dead := d.of("never")
		require.True(t, dead)
		require.Contains(t, one.cause, "did not attach")
		require.Len(t, d.all(), 1)
		s.Goodbye()
	})
}

func TestReportedHostAttachesOnlyAfterItsRemoval(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, d := newWatch(t)
		d.hold = make(chan struct{})
		s := attach(t, w, "a")
		go func() {
			if err := w.Report(t.Context(), "a", "killed by signal 9"); err != nil {
				t.Error(err)
			}
			if err := w.Report(t.Context(), "a", "and again"); err != nil {
				t.Error(err)
			}
		}()
		synctest.Wait()
		<-s.Over()
		one, dead := d.of("a")
		require.True(t, dead)
		require.Equal(t, "killed by signal 9", one.cause)
		require.Zero(t, one.after)

		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		_, err := w.Attach(ctx, info("a"))
		require.ErrorIs(t, err, context.DeadlineExceeded, "the removal is not complete")
		close(d.hold)
		synctest.Wait()
		attach(t, w, "a").Goodbye()
	})
}

func TestCloseDeclaresNoHostDead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, d := newWatch(t)
		s := attach(t, w, "a")
		w.Expect(info("b"))
		w.Close()
		<-s.Over()
		require.Equal(t, connect.CodeUnavailable, connect.CodeOf(s.Err()))
		s.Broken()
		_, err := w.Attach(t.Context(), info("a"))
		require.Equal(t, connect.CodeUnavailable, connect.CodeOf(err))
		require.Error(t, w.Report(t.Context(), "a", "killed"))
		later(time.Minute)
		require.Empty(t, d.all())
	})
}

func TestHostKnownBeforeARestartHasTimeToAttach(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, d := newWatch(t)
		w.ExpectBack(info("gone"))
		w.ExpectBack(info("back"))
		later(lease + reattach - time.Millisecond)
		require.Empty(t, d.all())
		attach(t, w, "back")
		later(2 * tick)
		one, dead := d.of("gone")
		require.True(t, dead)
		require.Equal(t, "it did not attach to Brain within 15s", one.cause)
		require.Len(t, d.all(), 1)
	})
}

// absent simulates a watcher that was suspended: its next sweep is a minute late. It returns the
// hosts that were declared dead.
func absent(t *testing.T) *deaths {
	t.Helper()
	w, d := newWatch(t)
	attach(t, w, "attached")
	attach(t, w, "broken").Broken()
	w.Expect(info("expected"))
	last := time.Now()
	w.sweep(last.Add(time.Minute), &last)
	synctest.Wait()
	return d
}
