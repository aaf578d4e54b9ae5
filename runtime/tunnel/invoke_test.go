package tunnel_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect/v2"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/raylink/raylink/runtime/tunnel"
)

// Invoke delivers each response to its caller, whole, and its errors are those of other calls.
func TestInvoke(t *testing.T) {
	t.Parallel()
	held := make(chan *tunnel.Incoming, 1)
	s := overMemory(t, tunnel.Config{}, tunnel.Config{}, handlers{unary: func(in *tunnel.Incoming) {
		switch in.Procedure {
		case "/p/Hold":
			held <- in
		case "/p/Fail":
			in.Reply(nil, connect.NewError(connect.CodeAborted, "failed"))
		default:
			echoUnary(in)
		}
	}})
	var callers sync.WaitGroup
	for size, times := range map[int]int{0: 200, 1: 200, 300: 200, 8 << 10: 50, 1 << 20: 3} {
		for range 4 {
			callers.Go(func() {
				want := pattern(size, size)
				request, err := proto.Marshal(wrapperspb.Bytes(want))
				if err != nil {
					t.Error(err)
					return
				}
				for range times {
					var got []byte
					err := s.client.Invoke(t.Context(), "/p/Echo", request, func(b []byte) error {
						res := new(wrapperspb.BytesValue)
						err := proto.Unmarshal(b, res)
						got = res.GetValue()
						return err
					})
					if err != nil || string(want) != string(got) {
						t.Errorf("%d bytes: %d arrive, %v", size, len(got), err)
						return
					}
				}
			})
		}
	}
	callers.Wait()

	none := func([]byte) error { return errors.New("a response that failed is decoded") }
	err := s.client.Invoke(t.Context(), "/p/Fail", nil, none)
	require.Equal(t, connect.CodeAborted, connect.CodeOf(err))
	require.ErrorContains(t, s.client.Invoke(t.Context(), "/p/Echo", nil, none), "a response that failed is decoded")
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	require.Equal(t, connect.CodeDeadlineExceeded, connect.CodeOf(s.client.Invoke(ctx, "/p/Hold", nil, none)))
	(<-held).Reply(nil, nil)
	require.ErrorIs(t, s.client.Invoke(ctx, "/p/Echo", nil, none), tunnel.ErrNotRun)
	require.NoError(t, s.client.Close())
	require.Equal(t, connect.CodeUnavailable, connect.CodeOf(s.client.Invoke(t.Context(), "/p/Echo", nil, none)))
}
