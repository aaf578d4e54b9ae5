package tunnel_test

import (
	"context"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/raylink/raylink/runtime/tunnel"
	"github.com/raylink/raylink/runtime/tunnel/memnet"
)

// counted counts what a connection is asked to do.
type counted struct {
	net.Conn

	reads, writes atomic.Int64
}

func (c *counted) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.reads.Add(1)
	return n, err
}

func (c *counted) Write(b []byte) (int, error) {
	c.writes.Add(1)
	return c.Conn.Write(b)
}

func TestOneCallIsOneWriteAndOneReadOnEachSide(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := memnet.Pipe()
		a, b := &counted{Conn: near}, &counted{Conn: far}
		client, server := join(t, a, b, tunnel.Config{}, tunnel.Config{}, echo())
		roundTrip(t, client, 16)
		synctest.Wait()
		for _, c := range []*counted{a, b} {
			c.reads.Store(0)
			c.writes.Store(0)
		}
		const calls = 50
		for range calls {
			roundTrip(t, client, 16)
		}
		synctest.Wait()
		for _, c := range []*counted{a, b} {
			require.EqualValues(t, calls, c.reads.Load())
			require.EqualValues(t, calls, c.writes.Load())
		}
		require.NoError(t, client.Close())
		require.NoError(t, server.Close())
	})
}

// TestABurstTakesFewWritesAndReads has a thousand calls queue up while nothing gets through, and counts what it takes to send and answer them.
func TestABurstTakesFewWritesAndReads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := memnet.Pipe()
		a, b := &counted{Conn: near}, &counted{Conn: far}
		client, server := join(t, a, b, tunnel.Config{}, tunnel.Config{}, echo())
		near.Link().Stall()
		_, first, err := start(t.Context(), client, "/p/P", 16)
		require.NoError(t, err)
		synctest.Wait()
		for _, c := range []*counted{a, b} {
			c.reads.Store(0)
			c.writes.Store(0)
		}
		const calls = 1000
		var all sync.WaitGroup
		for range calls {
			all.Add(1)
			require.NoError(t, client.Start(context.Background(), &tunnel.Call{
				Target: "target", Procedure: "/p/P", Request: wrapperspb.Bytes(make([]byte, 16)), Done: func(*tunnel.Call) { all.Done() },
			}))
		}
		synctest.Wait()
		near.Link().Resume()
		require.NoError(t, <-first)
		all.Wait()
		synctest.Wait()
		require.LessOrEqual(t, a.writes.Load(), int64(calls/callsAtOnce+1), "calls go out in batches")
		require.LessOrEqual(t, b.writes.Load(), int64(calls/answersAtOnce+1), "and so do answers")
		for _, c := range []*counted{a, b} {
			require.LessOrEqual(t, c.reads.Load(), int64(calls/answersAtOnce+1))
		}
		require.NoError(t, client.Close())
		require.NoError(t, server.Close())
	})
}

// Batches of calls and of answers, see callBatch and inlineBatch.
const (
	callsAtOnce   = 32
	answersAtOnce = 16
)

// TestAllocationsOfACall counts both sides together: the call, the response and its bytes, the request and its bytes, what the
// server knows of the call, and what the channel that waits needs.
func TestAllocationsOfACall(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates as well")
	}
	client, _ := overTCP(t, tunnel.Config{}, echo())
	ctx := context.Background()
	req := wrapperspb.Bytes(make([]byte, 16))
	done := make(chan struct{}, 1)
	end := func(*tunnel.Call) { done <- struct{}{} }
	once := func() {
		call := &tunnel.Call{
			Target: "target", Caller: "caller", Procedure: "/p.P/M", Request: req, Response: &wrapperspb.BytesValue{}, Done: end,
		}
		require.NoError(t, client.Start(ctx, call))
		<-done
	}
	for range 100 {
		once()
	}
	require.LessOrEqual(t, testing.AllocsPerRun(2000, once), 6.0)
}
