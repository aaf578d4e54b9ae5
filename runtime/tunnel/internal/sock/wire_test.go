package sock

import (
	"io"
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// taken returns the two ends of a TCP connection, the first of which is below TLS.
func taken(t *testing.T) (w *Wire, socket *Writer, far net.Conn) {
	t.Helper()
	near, far, _ := socketPair(t)
	w, socket = NewWire(near), &Writer{}
	w.Take()
	socket.Init(w)
	require.True(t, socket.Available())
	return w, socket, far
}

// TestWireWritesNothingBeforeItIsSent also has a write of another goroutine during a send: what TLS
// has to say to the peer.
func TestWireWritesNothingBeforeItIsSent(t *testing.T) {
	w, socket, far := taken(t)
	for _, s := range []string{"one ", "two "} {
		_, err := w.Write([]byte(s))
		require.NoError(t, err)
	}
	require.True(t, w.Unsent())
	sending := w.beginSend()
	_, err := w.Write(make([]byte, 2*wireBuffer)) // needs another buffer
	require.NoError(t, err)
	require.Equal(t, "one two ", string(sending))
	w.endSend(3)
	require.NoError(t, w.TrySend(socket))
	b := make([]byte, 5+2*wireBuffer)
	got := make(chan error, 1)
	go func() {
		_, err := io.ReadFull(far, b)
		got <- err
	}()
	require.NoError(t, w.Send())
	require.NoError(t, <-got)
	require.Equal(t, " two ", string(b[:5]))
	require.False(t, w.Unsent())
}

// TestWireDoesNotBlock has a peer that reads nothing: writes and Close return, and what is
// collected is bounded.
func TestWireDoesNotBlock(t *testing.T) {
	w, socket, _ := taken(t)
	record := make([]byte, 64<<10)
	for !w.Unsent() {
		_, err := w.Write(record)
		require.NoError(t, err)
		require.NoError(t, w.TrySend(socket))
	}
	var err error
	for i := 0; err == nil; i++ {
		require.LessOrEqual(t, i*len(record), maxUnsent)
		_, err = w.Write(record)
	}
	require.ErrorIs(t, err, errUnsent)
	require.NoError(t, w.Close())
}

func TestWireSendsTheAlertOfClose(t *testing.T) {
	w, _, far := taken(t)
	_, err := w.Write([]byte("alert"))
	require.NoError(t, err)
	require.NoError(t, w.Close())
	b, err := io.ReadAll(far)
	require.NoError(t, err)
	require.Equal(t, "alert", string(b))
}

func TestReadsOfAWire(t *testing.T) {
	w, _, far := taken(t)
	b := make([]byte, 2*PrefetchBytes)
	for _, mode := range []ReadMode{ReadTries, ReadsBuffered} {
		w.SetMode(mode)
		_, err := w.Read(b)
		require.ErrorIs(t, err, ErrWouldBlock)
	}
	require.ErrorIs(t, w.Prefetch(), ErrWouldBlock)
	_, err := far.Write(make([]byte, PrefetchBytes+1))
	require.NoError(t, err)
	require.Eventually(t, func() bool { return w.Prefetch() == nil }, time.Minute, time.Millisecond)
	w.SetMode(ReadsBuffered)
	n, err := w.Read(b)
	require.NoError(t, err)
	require.Equal(t, PrefetchBytes, n)
	w.SetMode(ReadBlocks)
	n, err = w.Read(b)
	require.NoError(t, err)
	require.Equal(t, 1, n)
	require.NoError(t, far.Close())
	require.Eventually(t, func() bool { return w.Prefetch() == io.EOF }, time.Minute, time.Millisecond) //nolint:errorlint // as it is
}
