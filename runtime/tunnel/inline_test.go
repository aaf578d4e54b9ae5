package tunnel_test

import (
	"context"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect/v2"
	"github.com/stretchr/testify/require"

	"github.com/raylink/raylink/runtime/tunnel"
)

// work is a function that the read loop runs inline.
type work func()

func (w work) Serve() { w() }

// inline returns a handler whose calls run inline on the read loop: those of "/p/Odd" run odd, and
// all others are echoed.
func inline(odd func(*tunnel.Incoming)) handlers {
	h := echo()
	h.unary = func(in *tunnel.Incoming) {
		if in.Procedure != "/p/Odd" {
			echoUnary(in)
			return
		}
		in.RunInline(work(func() { odd(in) }))
	}
	return h
}

// whileServed starts a call that runs odd inline, and returns how long the next call was delayed.
func whileServed(t *testing.T, odd func(*tunnel.Incoming)) (behind time.Duration, outcome error) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s := overMemory(t, tunnel.Config{}, tunnel.Config{}, inline(odd))
		begin := time.Now()
		_, done, err := start(t.Context(), s.client, "/p/Odd", 1)
		require.NoError(t, err)
		roundTrip(t, s.client, 1)
		behind = time.Since(begin)
		outcome = <-done
		roundTrip(t, s.client, 1)
	})
	return behind, outcome
}

func TestInlineWorkRunsOnReadLoop(t *testing.T) {
	same := func(in *tunnel.Incoming) { in.Reply(nil, nil) }
	behind, err := whileServed(t, same)
	require.NoError(t, err)
	require.Zero(t, behind)
}

func TestLongInlineWorkDelaysNoOtherCall(t *testing.T) {
	behind, err := whileServed(t, func(in *tunnel.Incoming) {
		<-time.After(time.Minute)
		in.Reply(nil, nil)
	})
	require.NoError(t, err)
	require.LessOrEqual(t, behind, 2*time.Millisecond)
}

func TestInlineWorkThatBlocksYieldsReadLoop(t *testing.T) {
	behind, err := whileServed(t, func(in *tunnel.Incoming) {
		if !in.MayBlock() || in.MayBlock() {
			in.Reply(nil, connect.NewError(connect.CodeInternal, "the read loop is replaced once"))
			return
		}
		<-time.After(time.Minute)
		in.Reply(nil, nil)
	})
	require.NoError(t, err)
	require.Zero(t, behind)
}

func TestInlineWorkIsCanceled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := overMemory(t, tunnel.Config{}, tunnel.Config{}, inline(func(in *tunnel.Incoming) {
			<-in.Context().Done()
			in.Reply(nil, in.Context().Err())
		}))
		call, done, err := start(t.Context(), s.client, "/p/Odd", 1)
		require.NoError(t, err)
		call.Cancel(context.Canceled)
		require.Equal(t, connect.CodeCanceled, connect.CodeOf(<-done))
		roundTrip(t, s.client, 1)
		synctest.Wait()
		require.Zero(t, s.server.Pending())
	})
}

func TestInlineWorkThatPanicsOrExits(t *testing.T) {
	_, err := whileServed(t, func(*tunnel.Incoming) { panic("the well ran dry") })
	require.Equal(t, connect.CodeInternal, connect.CodeOf(err))
	_, err = whileServed(t, func(in *tunnel.Incoming) {
		in.Reply(nil, nil)
		runtime.Goexit()
	})
	require.NoError(t, err)
}
