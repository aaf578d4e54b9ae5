package listen

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// from is a connection whose other side has an address.
type from struct {
	net.Conn

	remote net.Addr
}

// RemoteAddr implements [net.Conn].
func (c from) RemoteAddr() net.Addr { return c.remote }

func addressed(t *testing.T, ip string) (nc, far net.Conn) {
	t.Helper()
	near, far := net.Pipe()
	t.Cleanup(func() { _, _ = near.Close(), far.Close() })
	return from{near, &net.TCPAddr{IP: net.ParseIP(ip), Port: 4711}}, far
}

func isClosed(far net.Conn) bool {
	_ = far.SetReadDeadline(time.Now())
	_, err := far.Read(make([]byte, 1))
	return errors.Is(err, io.EOF)
}

func TestSources(t *testing.T) {
	for address, want := range map[string]string{
		"10.0.0.1": "10.0.0.1/32", "::ffff:10.0.0.1": "10.0.0.1/32", "2001:db8:1:2:3:4:5:6": "2001:db8:1:2::/64", "2001:db8:1:2::": "2001:db8:1:2::/64",
	} {
		require.Equal(t, netip.MustParsePrefix(want), sourceOf(&net.TCPAddr{IP: net.ParseIP(address)}), address)
	}
	require.Equal(t, sourceOf(&net.UnixAddr{Name: "a"}), sourceOf(&net.UnixAddr{Name: "b"}))
	require.Equal(t, sourceOf(&net.TCPAddr{IP: net.ParseIP("fe80::1"), Zone: "a"}), sourceOf(&net.TCPAddr{IP: net.ParseIP("fe80::2"), Zone: "b"}))
}

// TestOneSourceLeavesRoomForOthers: however many connections an address opens, another one's enter
// at once, and stay.
func TestOneSourceLeavesRoomForOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAdmission()
		defer a.close()
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		first, firstFar := addressed(t, "10.0.0.1")
		require.NotNil(t, a.enter(ctx, first, nil))
		for range maxPending - 1 {
			nc, _ := addressed(t, "10.0.0.1")
			require.NotNil(t, a.enter(ctx, nc, nil))
		}
		nc, _ := addressed(t, "10.0.0.1")
		p, wait := a.tryEnter(nc)
		require.Nil(t, p, "a handshake of its own may be under way")
		require.Equal(t, pendingGrace, wait)

		begun := time.Now()
		other, otherFar := addressed(t, "10.0.0.2")
		require.NotNil(t, a.enter(ctx, other, nil))
		require.Zero(t, time.Since(begun), "another address has to wait")
		require.True(t, isClosed(firstFar))
		for range 2 * maxPending {
			nc, _ := addressed(t, "10.0.0.1")
			require.NotNil(t, a.enter(ctx, nc, nil))
		}
		require.False(t, isClosed(otherFar), "the connection of another address was closed")
		require.Equal(t, maxPending, a.pending.Len())
		require.Equal(t, 1, a.sources[sourceOf(other.RemoteAddr())])
	})
}

// TestFloodsDontDelayTheAcceptLoop: connections for which there is no room don't keep others from
// being accepted, and are bounded in number.
func TestFloodsDontDelayTheAcceptLoop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, said, nil)
		defer w.close()
		begun := time.Now()
		open := func(ip string) net.Conn {
			nc, far := addressed(t, ip)
			require.True(t, w.admit(nc, true))
			return far
		}
		var far []net.Conn
		for range 5000 {
			far = append(far, open("10.0.0.1"))
		}
		other := open("10.0.0.2")
		require.Zero(t, time.Since(begun))
		closed := 0
		for _, c := range far {
			if isClosed(c) {
				closed++
			}
		}
		assert.Equal(t, 5000-maxPending-maxWaiting+1, closed)
		get := func(nc net.Conn) {
			require.NoError(t, nc.SetReadDeadline(time.Time{}))
			_, err := nc.Write([]byte("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"))
			require.NoError(t, err)
			head := make([]byte, len("HTTP/1.1 200"))
			_, err = io.ReadFull(nc, head)
			require.NoError(t, err)
			require.Equal(t, "HTTP/1.1 200", string(head))
		}
		get(other)
		require.Zero(t, time.Since(begun))
		newest := far[len(far)-1] // may be a caller, after a burst of the same address
		require.False(t, isClosed(newest), "the newest connection was closed")
		get(newest)
		require.Equal(t, pendingGrace, time.Since(begun))
		for _, c := range far {
			_ = c.Close()
		}
	})
}

// TestOneSourceLeavesRoomToWait: connections that wait for room make room for others of their
// address only.
func TestOneSourceLeavesRoomToWait(t *testing.T) {
	a := newAdmission()
	first, _ := addressed(t, "10.0.0.2")
	other, displaced := a.await(first)
	require.Nil(t, displaced)
	var waiting []*arrival
	for range 2 * maxWaiting {
		nc, _ := addressed(t, "10.0.0.1")
		w, displaced := a.await(nc)
		if waiting = append(waiting, w); len(waiting) < maxWaiting {
			require.Nil(t, displaced)
			continue
		}
		oldest := waiting[len(waiting)-maxWaiting]
		require.Equal(t, oldest.nc, displaced)
		require.Nil(t, a.enterLater(t.Context(), oldest))
	}
	require.NotNil(t, other.place, "the connection of another address was displaced")
	require.NotNil(t, a.enterLater(t.Context(), other))
	for _, w := range waiting[len(waiting)-maxWaiting+1:] {
		require.NotNil(t, a.enterLater(t.Context(), w))
	}
	require.Zero(t, a.waiting.Len())
	require.Empty(t, a.waitingSources)
	a.close()
}

// TestHandshakesTakeTurns: 5,000 handshakes of one address delay one of another by a few others,
// not by all; those that are dropped are not counted.
func TestHandshakesTakeTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCrypto()
		open := func(ip string) *pending {
			return &pending{source: netip.PrefixFrom(netip.MustParseAddr(ip), 32), dropped: make(chan struct{})}
		}
		var hostile []*pending
		done := make(chan error, 5000)
		for range 5000 {
			p := open("10.0.0.1")
			hostile = append(hostile, p)
			go func() { done <- c.begin(t.Context(), p) }()
		}
		synctest.Wait()
		begun := time.Now()
		require.NoError(t, c.begin(t.Context(), open("10.0.0.2")))
		require.LessOrEqual(t, time.Since(begun), 2*handshakeInterval)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		require.ErrorIs(t, c.begin(ctx, open("10.0.0.2")), context.Canceled)
		for _, p := range hostile {
			close(p.dropped)
		}
		for range hostile {
			if err := <-done; err != nil {
				require.ErrorIs(t, err, net.ErrClosed)
			}
		}
		require.LessOrEqual(t, time.Since(begun), 2*handshakeInterval, "what was dropped has a turn")
		require.True(t, c.starting.isEmpty())
		require.Empty(t, c.starting.lines)
	})
}

// TestComputationsTakeTurns is the same for the processors.
func TestComputationsTakeTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCrypto()
		c.slots = 1
		hostile, other := netip.MustParsePrefix("10.0.0.1/32"), netip.MustParsePrefix("10.0.0.2/32")
		computed := 0
		c.acquire(hostile)
		for range 100 {
			go func() {
				c.acquire(hostile)
				computed++ // one at a time
				c.release()
			}()
		}
		synctest.Wait()
		before := make(chan int)
		go func() {
			c.acquire(other)
			n := computed
			c.release()
			before <- n
		}()
		synctest.Wait()
		c.release()
		require.LessOrEqual(t, <-before, 1)
		synctest.Wait()
		require.Equal(t, 100, computed)
		require.Equal(t, 1, c.slots)
	})
}
