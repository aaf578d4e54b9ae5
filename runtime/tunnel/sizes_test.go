package tunnel_test

import (
	"context"
	"fmt"
	"io"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect/v2"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/raylink/raylink/runtime/tunnel"
)

// fragments runs a test on tunnels whose sides accept fragments of different sizes: each side sends
// what the other accepts.
func fragments(t *testing.T, test func(t *testing.T, client *tunnel.Conn)) {
	t.Helper()
	for _, most := range [][2]int{{0, 0}, {1, 0}, {0, 1}, {8 << 20, 100 << 10}} {
		t.Run(fmt.Sprint(most), func(t *testing.T) {
			near, far := sockets(t)
			client, server := join(t, near, far, tunnel.Config{MaxFragmentBytes: most[0]}, tunnel.Config{MaxFragmentBytes: most[1]}, echo())
			test(t, client)
			require.NoError(t, client.Close())
			require.NoError(t, server.Close())
		})
	}
}

func TestUnaryCallsOfAllSizes(t *testing.T) { fragments(t, unaryCallsOfAllSizes) }

func unaryCallsOfAllSizes(t *testing.T, client *tunnel.Conn) {
	t.Helper()
	var wg sync.WaitGroup
	for _, size := range []int{0, 1, 100, 8 << 10, 9 << 10, 64 << 10, 65 << 10, 1 << 20, 20 << 20} {
		for range 4 {
			wg.Add(1)
			req, res := wrapperspb.Bytes(make([]byte, size)), &wrapperspb.BytesValue{}
			ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
			defer cancel()
			require.NoError(t, client.Start(ctx, &tunnel.Call{
				Target: "t", Caller: "c", Procedure: "/echo/Echo", Request: req, Response: res,
				Done: func(c *tunnel.Call) {
					defer wg.Done()
					if c.Err != nil || len(res.GetValue()) != size {
						t.Errorf("size %d: %v, %d bytes", size, c.Err, len(res.GetValue()))
					}
				},
			}))
		}
	}
	wg.Wait()
}

func TestStreamOfAllSizes(t *testing.T) {
	fragments(t, streamOfAllSizes)
}

func streamOfAllSizes(t *testing.T, client *tunnel.Conn) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	s, err := client.Stream(ctx, tunnel.StreamRequest{Procedure: "/echo/Echo", StreamType: connect.StreamTypeBidi})
	require.NoError(t, err)
	sizes := []int{0, 1, 100, 8 << 10, 9 << 10, 64 << 10, 65 << 10, 600 << 10, 1 << 20, 20 << 20, 3}
	go func() {
		for _, size := range sizes {
			if err := s.Send(wrapperspb.Bytes(make([]byte, size))); err != nil {
				t.Error(err)
			}
		}
		if err := s.CloseSend(); err != nil {
			t.Error(err)
		}
	}()
	for _, size := range sizes {
		res := &wrapperspb.BytesValue{}
		require.NoError(t, s.Receive(res))
		require.Len(t, res.GetValue(), size)
	}
	require.ErrorIs(t, s.Receive(&wrapperspb.BytesValue{}), io.EOF)
	require.NoError(t, s.Close())
}
