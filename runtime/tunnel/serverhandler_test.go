package tunnel_test

import (
	"context"
	"runtime"
	"testing"

	"connectrpc.com/connect/v2"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/raylink/raylink/runtime/tunnel"
)

// TestConnectHandlerThatPanicsFailsItsCallOnly: a handler that panics or ends its goroutine, unary
// and streaming, before its first message and after it. The connection stays open.
func TestConnectHandlerThatPanicsFailsItsCallOnly(t *testing.T) {
	t.Parallel()
	for how, end := range map[string]func(){"panicked": func() { panic("on purpose") }, "ended its goroutine": runtime.Goexit} {
		for _, sends := range []bool{false, true} {
			server := connect.NewServer()
			for procedure, shape := range map[string]connect.StreamType{"/p/Unary": connect.StreamTypeUnary, "/echo/Stream": connect.StreamTypeBidi} {
				server.Register(connect.Method{
					Spec: connect.Spec{Procedure: procedure, StreamType: shape},
					Handler: func(_ context.Context, _ connect.Spec, stream connect.ServerStream) error {
						if sends {
							if err := stream.Send(wrapperspb.Bytes([]byte("x"))); err != nil {
								return err
							}
						}
						end()
						return nil
					},
				})
			}
			s := overMemory(t, tunnel.Config{Logger: silent()}, tunnel.Config{Logger: silent()}, tunnel.ServerHandler(server))
			for range 2 { // the second shows that the connection is still open
				_, done, err := start(t.Context(), s.client, "/p/Unary", 1)
				require.NoError(t, err)
				err = <-done
				require.Equal(t, connect.CodeInternal, connect.CodeOf(err), "%v", err)
				require.ErrorContains(t, err, how)
				stream := bidi(t.Context(), t, s.client)
				require.NoError(t, stream.SendHeaders())
				msg := &wrapperspb.BytesValue{}
				if sends {
					require.NoError(t, stream.Receive(msg))
				}
				err = stream.Receive(msg)
				require.Equal(t, connect.CodeInternal, connect.CodeOf(err), "no clean end: %v", err)
				require.ErrorContains(t, err, how)
			}
		}
	}
}
