package tunnel_test

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"runtime"
	"sync"
	"testing"

	"connectrpc.com/connect/v2"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/raylink/raylink/runtime/tunnel"
)

// talkative sets headers and trailers from several goroutines while it answers.
func talkative() handlers {
	set := func(in *tunnel.Incoming, all *sync.WaitGroup) {
		for _, f := range []func(tunnel.Header){in.SetHeader, in.SetTrailer} {
			all.Go(func() {
				jitter()
				f(header("k", "v"))
			})
		}
	}
	return handlers{
		unary: func(in *tunnel.Incoming) {
			go func() {
				var all sync.WaitGroup
				set(in, &all)
				jitter()
				if rand.IntN(2) == 0 {
					all.Wait()
				}
				in.Reply(wrapperspb.Bytes(make([]byte, rand.IntN(64<<10))), nil)
				all.Wait()
			}()
		},
		stream: func(_ context.Context, in *tunnel.Incoming, stream connect.ServerStream) error {
			var all sync.WaitGroup
			set(in, &all)
			defer all.Wait()
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
		},
	}
}

// jitter yields to other goroutines a random number of times.
func jitter() {
	for range rand.IntN(20) {
		runtime.Gosched()
	}
}

// TestHandlersSetMetadataWhileCallsEnd is for the race detector: it runs metadata, messages and
// answers concurrently with cancellation, lost connections and Close.
func TestHandlersSetMetadataWhileCallsEnd(t *testing.T) {
	for _, end := range []struct {
		name string
		do   func(client, server *tunnel.Conn)
	}{
		{"close of the client", func(client, _ *tunnel.Conn) { _ = client.Close() }},
		{"close of the server", func(_, server *tunnel.Conn) { _ = server.Close() }},
		{"shutdown", func(client, server *tunnel.Conn) {
			_ = server.Shutdown(context.Background())
			_ = client.Close()
		}},
	} {
		t.Run(end.name, func(t *testing.T) {
			near, far := sockets(t)
			client, server := join(t, near, far, tunnel.Config{}, tunnel.Config{}, talkative())
			var callers sync.WaitGroup
			for range 4 {
				callers.Go(func() { callAndCancel(client) })
				callers.Go(func() { streamAndCancel(client) })
			}
			callers.Wait()
			var more sync.WaitGroup
			for range 4 {
				more.Go(func() { callAndCancel(client) })
				more.Go(func() { streamAndCancel(client) })
			}
			end.do(client, server)
			more.Wait()
			require.NoError(t, client.Close())
			require.NoError(t, server.Close())
		})
	}
}

func callAndCancel(client *tunnel.Conn) {
	for range 150 {
		done := make(chan struct{})
		call := &tunnel.Call{
			Target: "t", Caller: "c", Procedure: "/p/P", Request: wrapperspb.Bytes(make([]byte, rand.IntN(64<<10))),
			Response: &wrapperspb.BytesValue{}, Done: func(*tunnel.Call) { close(done) },
		}
		if client.Start(context.Background(), call) != nil {
			return
		}
		jitter()
		call.Cancel(context.Canceled)
		<-done
		if call.Err == nil && len(call.ResponseHeader) > 1 {
			panic("a header of another call")
		}
	}
}

func streamAndCancel(client *tunnel.Conn) {
	for range 50 {
		ctx, cancel := context.WithCancel(context.Background())
		ctx, info := connect.NewClientContext(ctx)
		s, err := client.Stream(ctx, tunnel.StreamRequest{Procedure: "/p/P", StreamType: connect.StreamTypeBidi})
		if err != nil {
			cancel()
			return
		}
		var both sync.WaitGroup
		both.Go(func() {
			for range 3 {
				if s.Send(wrapperspb.Bytes(make([]byte, rand.IntN(10<<10)))) != nil {
					return
				}
			}
			_ = s.CloseSend()
		})
		both.Go(func() {
			for s.Receive(&wrapperspb.BytesValue{}) == nil {
			}
		})
		jitter()
		if rand.IntN(2) == 0 {
			cancel()
		}
		both.Wait()
		_ = s.Close()
		_ = info.ResponseHeader().Len()
		cancel()
	}
}
