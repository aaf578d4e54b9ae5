package tunnel_test

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect/v2"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/raylink/raylink/runtime/tunnel"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// echo answers unary calls with their request and streams with every message they send.
type echo struct{}

func (echo) ServeUnary(in *tunnel.Incoming) {
	req := &wrapperspb.BytesValue{}
	if err := in.Decode(req); err != nil {
		in.Reply(nil, err)
		return
	}
	in.Reply(req, nil)
}

func (echo) ServeStream(_ context.Context, _ *tunnel.Incoming, stream connect.ServerStream) error {
	for {
		req := &wrapperspb.BytesValue{}
		if err := stream.Receive(req); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		if err := stream.Send(req); err != nil {
			return err
		}
	}
}

func pair(t testing.TB, cfg tunnel.Config, handler tunnel.Handler) (*tunnel.Conn, *tunnel.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	type accepted struct {
		conn *tunnel.Conn
		err  error
	}
	ch := make(chan accepted, 1)
	go func() {
		nc, err := l.Accept()
		if err != nil {
			ch <- accepted{err: err}
			return
		}
		conn, err := tunnel.Accept(context.Background(), nc, cfg, func(tunnel.Hello) (tunnel.Welcome, tunnel.Handler, error) {
			return tunnel.Welcome{Host: "server"}, handler, nil
		})
		ch <- accepted{conn, err}
	}()
	nc, err := net.Dial("tcp", l.Addr().String())
	require.NoError(t, err)
	client, err := tunnel.Dial(context.Background(), nc, tunnel.Hello{Client: "client"}, cfg)
	require.NoError(t, err)
	a := <-ch
	require.NoError(t, a.err)
	t.Cleanup(func() {
		require.NoError(t, client.Close())
		require.NoError(t, a.conn.Close())
	})
	return client, a.conn
}

func TestUnaryCallsOfAllSizes(t *testing.T) {
	client, _ := pair(t, tunnel.Config{}, echo{})
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
	client, _ := pair(t, tunnel.Config{}, echo{})
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
