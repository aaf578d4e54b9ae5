package tunnel_test

import (
	"context"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/raylink/raylink/internal/invariants"
	"github.com/raylink/raylink/runtime/tunnel"
	"github.com/raylink/raylink/runtime/tunnel/memnet"
)

// counted counts the reads and writes of a connection.
type counted struct {
	net.Conn

	reads, writes atomic.Int64
	// blocked, if set, blocks writes until it is closed.
	blocked atomic.Pointer[chan struct{}]
}

func (c *counted) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.reads.Add(1)
	return n, err
}

func (c *counted) Write(b []byte) (int, error) {
	c.writes.Add(1)
	if blocked := c.blocked.Load(); blocked != nil {
		<-*blocked
	}
	return c.Conn.Write(b)
}

func TestOneCallTakesOneWriteAndOneReadPerSide(t *testing.T) {
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

// TestBurstIsBatchedIntoFewWrites queues a thousand calls while a write is blocked, and counts the
// reads and writes needed to send and answer them.
func TestBurstIsBatchedIntoFewWrites(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := memnet.Pipe()
		a, b := &counted{Conn: near}, &counted{Conn: far}
		client, server := join(t, a, b, tunnel.Config{}, tunnel.Config{}, echo())
		blocked := make(chan struct{})
		a.blocked.Store(&blocked)
		var all sync.WaitGroup
		begin := func() {
			all.Add(1)
			err := client.Start(context.Background(), &tunnel.Call{
				Target: "target", Procedure: "/p/P", Request: wrapperspb.Bytes(make([]byte, 16)), Done: func(*tunnel.Call) { all.Done() },
			})
			if err != nil {
				t.Error(err)
				all.Done()
			}
		}
		begin()
		synctest.Wait() // its write is blocked
		for _, c := range []*counted{a, b} {
			c.reads.Store(0)
			c.writes.Store(0)
		}
		const calls = 1000
		for range calls {
			begin()
		}
		synctest.Wait()
		close(blocked)
		all.Wait()
		synctest.Wait()
		assert.EqualValues(t, 1, a.writes.Load(), "queued frames are sent in one write")
		assert.LessOrEqual(t, b.reads.Load(), int64(20))
		// A write contains what was answered during the previous write, which depends on the
		// scheduler.
		assert.LessOrEqual(t, b.writes.Load(), int64(calls/10))
		assert.LessOrEqual(t, a.reads.Load(), b.writes.Load()+10, "while the read buffer is small, more reads are needed")
		assert.NoError(t, client.Close())
		assert.NoError(t, server.Close())
	})
}

// TestAllocationsOfACall counts the allocations of both sides together: the call, the response and
// its bytes, the request and its bytes, the server's state of the call, and the channel of the
// caller.
func TestAllocationsOfACall(t *testing.T) {
	if invariants.RaceEnabled {
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
