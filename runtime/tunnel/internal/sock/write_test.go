package sock

import (
	"bytes"
	"io"
	"net"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestWriteGathersBuffers(t *testing.T) {
	near, far, _ := socketPair(t)
	var w Writer
	w.Init(near)
	require.True(t, w.Available())
	n, err := w.Write([][]byte{[]byte("one")})
	require.NoError(t, err)
	require.Equal(t, 3, n)
	many := make([][]byte, 2*maxBuffers)
	for i := range many {
		many[i] = []byte{'x'}
	}
	n, err = w.Write(many)
	require.NoError(t, err)
	require.Equal(t, maxBuffers, n, "a short write, like any other")
	b := make([]byte, 3+maxBuffers)
	_, err = io.ReadFull(far, b)
	require.NoError(t, err)
	require.Equal(t, "one"+string(bytes.Repeat([]byte{'x'}, maxBuffers)), string(b))
}

// TestWriteDoesNotBlock: a socket whose buffers are full accepts nothing, which is no error.
func TestWriteDoesNotBlock(t *testing.T) {
	near, _, _ := socketPair(t)
	var w Writer
	w.Init(near)
	piece := make([]byte, 64<<10)
	for {
		n, err := w.Write([][]byte{piece, piece})
		require.NoError(t, err)
		if n == 0 {
			return
		}
	}
}

func TestWriteReportsClose(t *testing.T) {
	near, _, _ := socketPair(t)
	var w Writer
	w.Init(near)
	require.NoError(t, near.Close())
	_, err := w.Write([][]byte{[]byte("x")})
	require.ErrorIs(t, err, net.ErrClosed)
}

func TestOtherConnectionsAreNotSockets(t *testing.T) {
	near, far := net.Pipe()
	t.Cleanup(func() { _, _ = near.Close(), far.Close() })
	var w Writer
	w.Init(near)
	require.False(t, w.Available())
	var p Poller
	p.Init(near, DefaultBusyPoll)
	n, err := p.Read(make([]byte, 8))
	require.NoError(t, err)
	require.Zero(t, n)
}

func TestNothingIsAllocated(t *testing.T) {
	_, far, p := socketPair(t)
	var w Writer
	w.Init(far)
	b, bufs := make([]byte, 8), [][]byte{[]byte("x")}
	require.Zero(t, testing.AllocsPerRun(100, func() {
		_, _ = w.Write(bufs)
		p.skip = 0
		_, _ = p.Read(b)
	}))
}
