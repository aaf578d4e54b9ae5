package tunnel_test

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect/v2"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/raylink/raylink/runtime/tunnel"
)

func TestCallsOfOneCallerAreServedInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n = 60
		var order []int
		s := overMemory(t, tunnel.Config{}, tunnel.Config{}, handlers{unary: func(in *tunnel.Incoming) {
			req := &wrapperspb.StringValue{}
			if err := in.Decode(req); err != nil {
				t.Error(err)
			}
			i, err := strconv.Atoi(req.GetValue()[:3])
			if err != nil {
				t.Error(err)
			}
			order = append(order, i)
			in.Reply(nil, nil)
		}})
		sizes := []int{3, 200 << 10, 10, 10, 1 << 20, 3, 70 << 10, 9 << 10, 3}
		var wg sync.WaitGroup
		for i := range n {
			wg.Add(1)
			text := fmt.Sprintf("%03d", i) + strings.Repeat("x", sizes[i%len(sizes)])
			require.NoError(t, s.client.Start(t.Context(), &tunnel.Call{
				Target: "t", Procedure: "/p/P", Request: wrapperspb.String(text), Done: func(*tunnel.Call) { wg.Done() },
			}))
		}
		wg.Wait()
		for i := range n {
			require.Equal(t, i, order[i])
		}
	})
}

func TestCallCarriesMetadata(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var seen *tunnel.Incoming
		s := overMemory(t, tunnel.Config{}, tunnel.Config{}, handlers{unary: func(in *tunnel.Incoming) {
			seen = in
			in.SetHeader(header("Response", "1"))
			in.SetTrailer(header("trailer", "2"))
			in.Reply(wrapperspb.Bytes([]byte("answer")), nil)
		}})
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		deadline, _ := ctx.Deadline()
		for range 2 { // with interned names the second time
			done := make(chan *tunnel.Call, 1)
			res := &wrapperspb.BytesValue{}
			require.NoError(t, s.client.Start(ctx, &tunnel.Call{
				Target: "target", Caller: "caller", Procedure: "/p.P/M", Chain: []byte("chain"), Response: res,
				Header: tunnel.Header{{Key: "k", Value: "v1"}, {Key: "k", Value: "v2"}}, Done: func(c *tunnel.Call) { done <- c },
			}))
			call := <-done
			require.NoError(t, call.Err)
			require.Equal(t, "answer", string(res.GetValue()))
			require.Equal(t, "1", call.ResponseHeader.Get("RESPONSE"))
			require.Equal(t, "2", call.ResponseTrailer.Get("trailer"))
			require.Equal(t, []string{"target", "caller", "/p.P/M"}, []string{seen.Target, seen.Caller, seen.Procedure})
			require.Equal(t, []string{"v1", "v2"}, seen.Header().Values("K"))
			require.Equal(t, "chain", string(seen.Chain()))
			require.Equal(t, "client", seen.Client())
			arrived, ok := seen.Context().Deadline()
			require.True(t, ok)
			require.WithinDuration(t, deadline, arrived, time.Millisecond)
		}
		require.EqualValues(t, 2, s.client.Stats().Calls)
		require.EqualValues(t, 2, s.server.Stats().Calls)
		require.Equal(t, s.client.Stats().BytesSent, s.server.Stats().BytesReceived)
	})
}

func TestErrorsArriveWithCodeTextAndDetails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		detail := &connect.ErrorDetail{Type: "google.protobuf.StringValue", Value: []byte("\x0a\x01x")}
		fail := connect.NewError(connect.CodeAborted, "it went wrong").WithDetail(detail)
		var outcome error = fail
		s := overMemory(t, tunnel.Config{}, tunnel.Config{}, handlers{unary: func(in *tunnel.Incoming) {
			in.SetTrailer(header("why", "because"))
			in.Reply(nil, outcome)
		}})
		call := func() (*tunnel.Call, error) {
			call, done, err := start(t.Context(), s.client, "/p/P", 1)
			require.NoError(t, err)
			return call, <-done
		}
		c, err := call()
		var got *connect.Error
		require.ErrorAs(t, err, &got)
		require.True(t, got.IsRemote())
		require.Equal(t, connect.CodeAborted, got.Code())
		require.Equal(t, "it went wrong", got.Message())
		require.Equal(t, []*connect.ErrorDetail{detail}, got.Details())
		require.Equal(t, "because", c.ResponseTrailer.Get("why"))

		outcome = errors.New("plain")
		_, err = call()
		require.Equal(t, "unknown: plain", err.Error())

		outcome = context.DeadlineExceeded
		_, err = call()
		require.Equal(t, connect.CodeDeadlineExceeded, connect.CodeOf(err))

		// An error larger than the caller's limit loses its details and the end of its text, but
		// never its code.
		outcome = connect.NewError(connect.CodeDataLoss, strings.Repeat("ä", 100<<10)).WithDetail(detail)
		_, err = call()
		require.ErrorAs(t, err, &got)
		require.Equal(t, connect.CodeDataLoss, got.Code())
		require.Less(t, len(got.Message()), 65<<10)
		require.Contains(t, got.Message(), "ää... (the error was too large")
	})
}

func TestStartBlocksWhileSendWindowIsFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var held []*tunnel.Incoming
		s := overMemory(t, tunnel.Config{}, tunnel.Config{Window: 100 << 10}, handlers{unary: func(in *tunnel.Incoming) {
			held = append(held, in)
		}})
		_, first, err := start(t.Context(), s.client, "/p/P", 60<<10)
		require.NoError(t, err)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, _, err = start(ctx, s.client, "/p/P", 60<<10)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.ErrorIs(t, err, tunnel.ErrNotRun)
		require.Equal(t, connect.CodeDeadlineExceeded, connect.CodeOf(err))
		require.ErrorContains(t, err, "of 102400 bytes of requests in 1 of 65536 calls")

		began := make(chan (<-chan error), 1)
		go func() {
			_, done, err := start(context.Background(), s.client, "/p/P", 300<<10) // may exceed the window if no other call is open
			if err != nil {
				t.Error(err)
			}
			began <- done
		}()
		synctest.Wait()
		require.Empty(t, began)
		held[0].Reply(nil, nil)
		require.NoError(t, <-first)
		second := <-began
		synctest.Wait()
		held[1].Reply(nil, nil)
		require.NoError(t, <-second)
	})
}

func TestCancelEndsCallOnBothSides(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var held *tunnel.Incoming
		s := overMemory(t, tunnel.Config{}, tunnel.Config{}, handlers{unary: func(in *tunnel.Incoming) { held = in }})
		call, done, err := start(t.Context(), s.client, "/p/P", 1)
		require.NoError(t, err)
		synctest.Wait()
		require.NoError(t, held.Context().Err())
		derived, cancel := context.WithCancel(held.Context())
		defer cancel()
		call.Cancel(context.Canceled)
		require.Equal(t, connect.CodeCanceled, connect.CodeOf(<-done))
		synctest.Wait()
		require.ErrorIs(t, held.Context().Err(), context.Canceled)
		require.ErrorIs(t, derived.Err(), context.Canceled)
		call.Cancel(context.Canceled) // has no effect
		require.Equal(t, 1, s.client.Pending(), "the id is in use until the final frame of the peer")
		held.Reply(nil, nil)
		synctest.Wait()
		require.Zero(t, s.client.Pending())
		require.Zero(t, s.server.Pending())
	})
}

func TestCancelWhileSendingRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		served := 0
		s := overMemory(t, tunnel.Config{}, tunnel.Config{}, handlers{unary: func(in *tunnel.Incoming) {
			served++
			in.Reply(nil, nil)
		}})
		s.link.Stall()
		first, firstDone, err := start(t.Context(), s.client, "/p/P", 4<<20)
		require.NoError(t, err)
		synctest.Wait() // until a part of it is in flight
		second, secondDone, err := start(t.Context(), s.client, "/p/P", 4<<20)
		require.NoError(t, err)
		_, thirdDone, err := start(t.Context(), s.client, "/p/P", 1)
		require.NoError(t, err)
		first.Cancel(nil)
		second.Cancel(nil)
		require.Error(t, <-firstDone)
		require.Error(t, <-secondDone)
		s.link.Resume()
		require.NoError(t, <-thirdDone)
		synctest.Wait()
		require.Equal(t, 1, served)
		require.Zero(t, s.client.Pending())
		require.Zero(t, s.server.Pending())
	})
}

func TestCancelWhileReceivingResponse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := overMemory(t, tunnel.Config{}, tunnel.Config{}, handlers{unary: func(in *tunnel.Incoming) {
			if in.Procedure == "/p/Small" {
				in.Reply(nil, nil)
				return
			}
			in.Reply(wrapperspb.Bytes(make([]byte, 8<<20)), nil)
		}})
		s.link.StallReplies()
		var calls []*tunnel.Call
		var ends []<-chan error
		for range 6 { // more than the response window fits
			call, done, err := start(t.Context(), s.client, "/p/Large", 1)
			require.NoError(t, err)
			calls, ends = append(calls, call), append(ends, done)
		}
		synctest.Wait()
		for i, call := range calls[:5] {
			call.Cancel(nil)
			require.Error(t, <-ends[i])
		}
		synctest.Wait()
		s.link.Resume()
		require.NoError(t, <-ends[5])
		_, done, err := start(t.Context(), s.client, "/p/Small", 1)
		require.NoError(t, err)
		require.NoError(t, <-done)
		synctest.Wait()
		require.Zero(t, s.client.Pending())
		require.Less(t, s.client.Stats().BytesReceived, uint64(20<<20), "canceled responses are not sent completely")
	})
}

func TestDeadlineReachesTheHandlersContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := overMemory(t, tunnel.Config{}, tunnel.Config{}, handlers{unary: func(in *tunnel.Incoming) {
			go func() {
				<-in.Context().Done()
				in.Reply(nil, in.Context().Err())
			}()
		}})
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		begin := time.Now()
		_, done, err := start(ctx, s.client, "/p/P", 1)
		require.NoError(t, err)
		require.Equal(t, connect.CodeDeadlineExceeded, connect.CodeOf(<-done))
		require.Equal(t, 3*time.Second, time.Since(begin))
		<-ctx.Done()
		_, _, err = start(ctx, s.client, "/p/P", 1)
		require.ErrorIs(t, err, context.DeadlineExceeded)
	})
}
