package tunnel_test

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect/v2"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/raylink/raylink/runtime/tunnel"
	"github.com/raylink/raylink/runtime/tunnel/memnet"
)

// invoke makes an echo of size bytes and waits, as a caller does who is ready to read its own answer.
func invoke(ctx context.Context, c *tunnel.Conn, size int) error {
	res := &wrapperspb.BytesValue{}
	call := &tunnel.Call{
		Procedure: "/p/P", Request: wrapperspb.Bytes(make([]byte, size)), Response: res, Waits: true,
	}
	if err := c.Start(ctx, call); err != nil {
		return err
	}
	c.Wait(ctx, call, context.Context.Err)
	if call.Err == nil && len(res.GetValue()) != size {
		return connect.Errorf(connect.CodeDataLoss, "%d bytes came back of %d", len(res.GetValue()), size)
	}
	return call.Err
}

// alone makes calls until callers read their own answers.
func alone(t *testing.T, c *tunnel.Conn) {
	t.Helper()
	for range 20 {
		require.NoError(t, invoke(t.Context(), c, 16))
		synctest.Wait()
	}
}

// lent runs a test on a tunnel whose callers read their own answers; hold makes the server keep its answers until it is closed.
func lent(t *testing.T, test func(t *testing.T, s setup, hold func() (release func()))) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		var held chan struct{}
		s := overMemory(t, tunnel.Config{}, tunnel.Config{}, handlers{stream: echoStream, unary: func(in *tunnel.Incoming) {
			if held == nil {
				echoUnary(in)
				return
			}
			req := &wrapperspb.BytesValue{}
			if err := in.Decode(req); err != nil {
				in.Reply(nil, err)
				return
			}
			go func() {
				<-held
				in.Reply(req, nil)
			}()
		}})
		alone(t, s.client)
		test(t, s, func() func() {
			held = make(chan struct{})
			return func() { close(held) }
		})
	})
}

func TestAloneThenNot(t *testing.T) {
	lent(t, func(t *testing.T, s setup, _ func() func()) {
		roundTrip(t, s.client, 1) // whose caller does not read
		alone(t, s.client)
		stream := bidi(t.Context(), t, s.client)
		for range 3 {
			require.NoError(t, stream.Send(wrapperspb.Bytes([]byte("x"))))
			require.NoError(t, stream.Receive(&wrapperspb.BytesValue{}))
			require.NoError(t, invoke(t.Context(), s.client, 16))
		}
		require.NoError(t, stream.Close())
		alone(t, s.client)
		require.NoError(t, invoke(t.Context(), s.client, 3<<20))
		alone(t, s.client)
	})
}

func TestManyJoinACallerThatReads(t *testing.T) {
	lent(t, func(t *testing.T, s setup, hold func() func()) {
		release := hold()
		ends := make(chan error, 10)
		for range cap(ends) {
			go func() { ends <- invoke(t.Context(), s.client, 16) }()
			synctest.Wait()
		}
		release()
		for range cap(ends) {
			require.NoError(t, <-ends)
		}
	})
}

func TestContextOfACallerThatReadsEnds(t *testing.T) {
	lent(t, func(t *testing.T, s setup, hold func() func()) {
		defer hold()()
		begin := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		defer cancel()
		require.ErrorIs(t, invoke(ctx, s.client, 16), context.DeadlineExceeded)
		require.Equal(t, 10*time.Millisecond, time.Since(begin))
		ctx, cancel = context.WithCancel(t.Context())
		cancel()
		require.Equal(t, connect.CodeCanceled, connect.CodeOf(invoke(ctx, s.client, 16)))
	})
}

func TestConnectionIsLostUnderACallerThatReads(t *testing.T) {
	lent(t, func(t *testing.T, s setup, hold func() func()) {
		defer hold()()
		end := make(chan error, 1)
		go func() { end <- invoke(t.Context(), s.client, 16) }()
		synctest.Wait()
		s.link.Cut()
		err := <-end
		require.Equal(t, connect.CodeUnavailable, connect.CodeOf(err))
		require.ErrorIs(t, err, memnet.ErrCut)
		<-s.client.Done()
	})
}

func TestEndOfAConnectionThatNobodyReadsIsNoticed(t *testing.T) {
	lent(t, func(t *testing.T, s setup, _ func() func()) {
		begin := time.Now()
		require.NoError(t, s.server.Close())
		<-s.client.Done()
		require.LessOrEqual(t, time.Since(begin), 3*time.Millisecond)
	})
}

func TestCallerThatReadsALargeAnswerIsInterrupted(t *testing.T) {
	lent(t, func(t *testing.T, s setup, _ func() func()) {
		end := make(chan error, 1)
		s.link.Delay(700 * time.Microsecond) // so that its fragments come in several spells
		go func() { end <- invoke(t.Context(), s.client, 3<<20) }()
		<-time.After(2 * time.Millisecond)
		s.link.Stall()
		<-time.After(10 * time.Millisecond)
		s.link.Resume()
		require.NoError(t, <-end)
		s.link.Delay(0)
		alone(t, s.client)
	})
}

// TestCallersComeAndGo is for the race detector: the reading changes hands again and again.
func TestCallersComeAndGo(t *testing.T) {
	client, _ := overTCP(t, tunnel.Config{}, echo())
	for range 20 {
		for range 20 {
			require.NoError(t, invoke(t.Context(), client, 16))
		}
		var all sync.WaitGroup
		for range 3 {
			all.Go(func() {
				for range 10 {
					assert.NoError(t, invoke(t.Context(), client, 16))
				}
			})
		}
		all.Wait()
	}
}
