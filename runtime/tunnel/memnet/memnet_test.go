package memnet_test

import (
	"context"
	"io"
	"net"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/raylink/raylink/runtime/tunnel/memnet"
)

func TestDialReachesListener(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := memnet.New()
		_, err := n.Dial(t.Context(), "a")
		require.ErrorContains(t, err, "refused")
		l, err := n.Listen("a")
		require.NoError(t, err)
		_, err = n.Listen("a")
		require.ErrorContains(t, err, "in use")
		go func() {
			c, err := n.Dial(context.Background(), "a")
			if err == nil {
				_, err = c.Write([]byte("hello"))
			}
			if err == nil {
				err = c.Close()
			}
			if err != nil {
				t.Error(err)
			}
		}()
		c, err := l.Accept()
		require.NoError(t, err)
		got, err := io.ReadAll(c)
		require.NoError(t, err)
		require.Equal(t, "hello", string(got))
		require.NoError(t, c.Close())
		require.ErrorIs(t, c.Close(), net.ErrClosed)
		require.NoError(t, l.Close())
		_, err = l.Accept()
		require.ErrorIs(t, err, net.ErrClosed)
	})
}

func TestDeadlinesEndReadsAndWrites(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := memnet.Pipe()
		require.NoError(t, a.SetDeadline(time.Now().Add(time.Second)))
		begin := time.Now()
		_, err := a.Read(make([]byte, 1))
		require.ErrorIs(t, err, os.ErrDeadlineExceeded)
		var timeout net.Error
		require.ErrorAs(t, err, &timeout)
		require.True(t, timeout.Timeout())
		require.Equal(t, time.Second, time.Since(begin))
		_, err = a.Write(make([]byte, 1))
		require.ErrorIs(t, err, os.ErrDeadlineExceeded)
		require.NoError(t, a.SetDeadline(time.Time{}))
		go func() { _, _ = a.Write([]byte("x")) }()
		_, err = b.Read(make([]byte, 1))
		require.NoError(t, err)
	})
}

func TestLinkDelaysStallsAndCuts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := memnet.Pipe()
		read := func() (string, time.Duration) {
			begin, buf := time.Now(), make([]byte, 10)
			n, err := b.Read(buf)
			require.NoError(t, err)
			return string(buf[:n]), time.Since(begin)
		}
		a.Link().Delay(time.Second)
		_, err := a.Write([]byte("late"))
		require.NoError(t, err)
		text, took := read()
		require.Equal(t, "late", text)
		require.Equal(t, time.Second, took)

		a.Link().Delay(0)
		a.Link().Stall()
		_, err = a.Write([]byte("held"))
		require.NoError(t, err)
		time.AfterFunc(time.Minute, a.Link().Resume)
		text, took = read()
		require.Equal(t, "held", text)
		require.Equal(t, time.Minute, took)

		_, err = a.Write([]byte("lost"))
		require.NoError(t, err)
		a.Link().Cut()
		_, err = b.Read(make([]byte, 1))
		require.ErrorIs(t, err, memnet.ErrCut)
		_, err = a.Write([]byte("x"))
		require.ErrorIs(t, err, memnet.ErrCut)
	})
}

func TestWriterBlocksWhileBufferIsFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := memnet.Pipe()
		written := false
		go func() {
			if _, err := a.Write(make([]byte, 1<<20)); err != nil {
				t.Error(err)
			}
			written = true
			if err := a.Close(); err != nil {
				t.Error(err)
			}
		}()
		synctest.Wait()
		require.False(t, written)
		got, err := io.ReadAll(b)
		require.NoError(t, err)
		require.Len(t, got, 1<<20)
	})
}

func TestLinkLimitsRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := memnet.Pipe()
		a.Link().Rate(10_000)
		go func() { _, _ = a.Write(make([]byte, 20_000)) }()
		begin := time.Now()
		_, err := io.ReadFull(b, make([]byte, 20_000))
		require.NoError(t, err)
		require.InDelta(t, 2, time.Since(begin).Seconds(), 0.01)

		a.Link().Rate(3) // less than one byte per portion
		go func() { _, _ = a.Write(make([]byte, 9)) }()
		begin = time.Now()
		_, err = io.ReadFull(b, make([]byte, 9))
		require.NoError(t, err)
		require.InDelta(t, 3, time.Since(begin).Seconds(), 0.5)

		a.Link().Rate(0)
		go func() { _, _ = a.Write(make([]byte, 20_000)) }()
		begin = time.Now()
		_, err = io.ReadFull(b, make([]byte, 20_000))
		require.NoError(t, err)
		require.Zero(t, time.Since(begin))
	})
}

func TestLinkStallsAfterBytes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := memnet.Pipe()
		a.Link().StallRepliesAfter(3)
		_, err := b.Write([]byte("12345"))
		require.NoError(t, err)
		buf := make([]byte, 10)
		n, err := a.Read(buf)
		require.NoError(t, err)
		require.Equal(t, "123", string(buf[:n]))
		require.NoError(t, a.SetReadDeadline(time.Now().Add(time.Hour)))
		_, err = a.Read(buf)
		require.ErrorIs(t, err, os.ErrDeadlineExceeded)
		require.NoError(t, a.SetReadDeadline(time.Time{}))
		a.Link().Resume()
		n, err = a.Read(buf)
		require.NoError(t, err)
		require.Equal(t, "45", string(buf[:n]))

		a.Link().StallRequestsAfter(2)
		_, err = a.Write([]byte("678"))
		require.NoError(t, err)
		n, err = b.Read(buf)
		require.NoError(t, err)
		require.Equal(t, "67", string(buf[:n]))
		require.NoError(t, b.SetReadDeadline(time.Now().Add(time.Hour)))
		_, err = b.Read(buf)
		require.ErrorIs(t, err, os.ErrDeadlineExceeded)
		require.NoError(t, b.SetReadDeadline(time.Time{}))
		_, err = b.Write([]byte("9"))
		require.NoError(t, err)
		n, err = a.Read(buf)
		require.NoError(t, err)
		require.Equal(t, "9", string(buf[:n]), "the other direction flows")
	})
}
