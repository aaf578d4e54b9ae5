package tunnel_test

import (
	"context"
	"fmt"
	"testing"

	"connectrpc.com/connect/v2"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/raylink/raylink/runtime/tunnel"
)

// TestOnlyOwnRefusalIsNotRun: an error that a handler returns does not certify that its call was
// not run, even if it wraps the error of another call that was not.
func TestOnlyOwnRefusalIsNotRun(t *testing.T) {
	t.Parallel()
	refusal := connect.NewError(connect.CodeUnavailable, "not here")
	passed := fmt.Errorf("passed on: %w", refusal.WithCause(tunnel.ErrNotRun))
	refuses := func(in *tunnel.Incoming) error {
		if in.Procedure == "/p/Refuse" {
			in.ReplyNotRun(refusal)
			return refusal
		}
		return passed
	}
	client, _ := overTCP(t, tunnel.Config{}, handlers{
		unary: func(in *tunnel.Incoming) { in.Reply(nil, refuses(in)) },
		stream: func(_ context.Context, in *tunnel.Incoming, _ connect.ServerStream) error {
			return refuses(in)
		},
	})
	for _, procedure := range []string{"/p/Refuse", "/p/Fail"} {
		_, done, err := start(t.Context(), client, procedure, 1)
		require.NoError(t, err)
		req := tunnel.StreamRequest{Procedure: procedure, StreamType: connect.StreamTypeBidi}
		stream, err := client.Stream(t.Context(), req)
		require.NoError(t, err)
		for _, err := range []error{<-done, stream.Receive(&wrapperspb.BytesValue{})} {
			require.Equal(t, connect.CodeUnavailable, connect.CodeOf(err))
			require.ErrorContains(t, err, "not here")
			if procedure == "/p/Refuse" {
				require.ErrorIs(t, err, tunnel.ErrNotRun)
			} else {
				require.NotErrorIs(t, err, tunnel.ErrNotRun)
			}
		}
	}
}
