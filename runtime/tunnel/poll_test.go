package tunnel

import (
	"io"
	"net"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// socketPair is two ends of a TCP connection, and what polls the one.
func socketPair(t *testing.T) (near, far net.Conn, p *polling) {
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
	p = &polling{}
	p.init(near, defaultBusyPoll)
	p.most = 1
	p.budget, p.raw = defaultBusyPoll, rawConn(near) // also on a machine with one processor
	if p.look == nil {
		t.Skip("one processor: nobody polls")
	}
	return near, far, p
}

func TestPollingFindsWhatComes(t *testing.T) {
	_, far, p := socketPair(t)
	p.budget = time.Minute
	_, err := far.Write([]byte("abc"))
	require.NoError(t, err)
	b := make([]byte, 8)
	n, err := p.read(b)
	require.NoError(t, err)
	require.Equal(t, "abc", string(b[:n]))
	require.NoError(t, far.Close())
	_, err = p.read(b)
	require.ErrorIs(t, err, io.EOF)
	require.Zero(t, pollers.Load())
}

// TestPollingInVainBecomesRare: a connection on which nothing comes is looked at less and less.
func TestPollingInVainBecomesRare(t *testing.T) {
	_, far, p := socketPair(t)
	looked := 0
	look := p.look
	p.look = func(fd uintptr) bool { looked++; return look(fd) }
	p.budget = 1 // a single look, or two
	b := make([]byte, 8)
	times := 0
	for range 1000 {
		before := looked
		n, err := p.read(b)
		require.NoError(t, err)
		require.Zero(t, n)
		if looked > before {
			times++
		}
	}
	require.Less(t, times, 30)
	// Once something has come in time, it is worth while again.
	p.skip, p.budget = 0, time.Minute
	_, err := far.Write([]byte("x"))
	require.NoError(t, err)
	n, err := p.read(b)
	require.NoError(t, err)
	require.Equal(t, 1, n)
	require.Zero(t, p.missed)
}

func TestOnlySomePollAtATime(t *testing.T) {
	_, _, p := socketPair(t)
	pollers.Add(p.most)
	defer pollers.Add(-p.most)
	p.look = func(uintptr) bool { t.Error("it looked"); return true }
	n, err := p.read(make([]byte, 8))
	require.NoError(t, err)
	require.Zero(t, n)
}

func TestPollingEndsWithTheConnectionAndItsDeadline(t *testing.T) {
	near, _, p := socketPair(t)
	p.budget = time.Minute
	require.NoError(t, near.SetReadDeadline(time.Unix(1, 0)))
	_, err := p.read(make([]byte, 8))
	require.Error(t, err)
	require.True(t, isInterruption(err))
	require.NoError(t, near.Close())
	_, err = p.read(make([]byte, 8))
	require.ErrorIs(t, err, net.ErrClosed)
}

func TestNobodyPollsWhereItIsTurnedOff(t *testing.T) {
	near, _, _ := socketPair(t)
	var p polling
	p.init(near, -1)
	require.Nil(t, p.raw)
	require.LessOrEqual(t, int(p.most), runtime.GOMAXPROCS(0)/2)
}
