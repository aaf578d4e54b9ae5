package sock

import (
	"io"
	"net"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// socketPair returns the two ends of a TCP connection and a Poller of the first.
func socketPair(t *testing.T) (near, far net.Conn, p *Poller) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	accepted := make(chan net.Conn, 1)
	go func() {
		nc, err := l.Accept()
		if err == nil {
			accepted <- nc
		}
		close(accepted)
	}()
	near, err = net.Dial("tcp", l.Addr().String())
	require.NoError(t, err)
	far = <-accepted
	require.NotNil(t, far)
	require.NoError(t, l.Close())
	t.Cleanup(func() { _, _ = near.Close(), far.Close() })
	p = &Poller{}
	p.Init(near, DefaultBusyPoll)
	p.maxSpinning = 1
	p.budget, p.raw = DefaultBusyPoll, rawConn(near) // also on a machine with one CPU
	if p.tryRead == nil {
		t.Skip("one CPU: Read never spins")
	}
	return near, far, p
}

func TestPollFindsData(t *testing.T) {
	_, far, p := socketPair(t)
	p.budget = time.Minute
	_, err := far.Write([]byte("abc"))
	require.NoError(t, err)
	b := make([]byte, 8)
	n, err := p.Read(b)
	require.NoError(t, err)
	require.Equal(t, "abc", string(b[:n]))
	require.NoError(t, far.Close())
	_, err = p.Read(b)
	require.ErrorIs(t, err, io.EOF)
	require.Zero(t, spinning.Load())
}

// TestPollsThatMissBackOff: a connection without traffic is polled less and less often.
func TestPollsThatMissBackOff(t *testing.T) {
	_, far, p := socketPair(t)
	reads := 0
	tryRead := p.tryRead
	p.tryRead = func(fd uintptr) bool { reads++; return tryRead(fd) }
	p.budget = 1 // a single tryRead, or two
	b := make([]byte, 8)
	times := 0
	for range 1000 {
		before := reads
		n, err := p.Read(b)
		require.NoError(t, err)
		require.Zero(t, n)
		if reads > before {
			times++
		}
	}
	require.Less(t, times, 30)
	// A hit ends the backoff.
	p.skip, p.budget = 0, time.Minute
	_, err := far.Write([]byte("x"))
	require.NoError(t, err)
	n, err := p.Read(b)
	require.NoError(t, err)
	require.Equal(t, 1, n)
	require.Zero(t, p.backoff)
}

func TestSpinningReadersAreLimited(t *testing.T) {
	_, _, p := socketPair(t)
	spinning.Add(p.maxSpinning)
	defer spinning.Add(-p.maxSpinning)
	p.tryRead = func(uintptr) bool { t.Error("it read the socket"); return true }
	n, err := p.Read(make([]byte, 8))
	require.NoError(t, err)
	require.Zero(t, n)
}

func TestPollReportsDeadlineAndClose(t *testing.T) {
	near, _, p := socketPair(t)
	p.budget = time.Minute
	require.NoError(t, near.SetReadDeadline(time.Unix(1, 0)))
	_, err := p.Read(make([]byte, 8))
	require.Error(t, err)
	require.ErrorIs(t, err, os.ErrDeadlineExceeded)
	require.NoError(t, near.Close())
	_, err = p.Read(make([]byte, 8))
	require.ErrorIs(t, err, net.ErrClosed)
}

func TestPollingCanBeDisabled(t *testing.T) {
	near, _, _ := socketPair(t)
	var p Poller
	p.Init(near, -1)
	require.Nil(t, p.raw)
	n, err := p.Read(make([]byte, 8))
	require.NoError(t, err)
	require.Zero(t, n)
	require.LessOrEqual(t, int(p.maxSpinning), runtime.GOMAXPROCS(0)/2)
}
