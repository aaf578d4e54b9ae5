package tunnel_test

import (
	"bytes"
	"context"
	"testing"

	"connectrpc.com/connect/v2"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/raylink/raylink/runtime/tunnel"
)

// encodedEcho answers each call with its request, encoded by itself in a buffer that it uses again.
type encodedEcho struct{ buf []byte }

func (h *encodedEcho) ServeUnary(in *tunnel.Incoming) {
	req := new(wrapperspb.BytesValue)
	if err := in.Decode(req); err != nil {
		in.Reply(nil, err)
		return
	}
	var err error
	if h.buf, err = (proto.MarshalOptions{}).MarshalAppend(h.buf[:0], req); err != nil {
		in.Reply(nil, err)
		return
	}
	in.ReplyEncoded(h.buf)
	clear(h.buf[:cap(h.buf)])
}

func (*encodedEcho) ServeStream(context.Context, *tunnel.Incoming, connect.ServerStream) error {
	return nil
}

// TestEncodedReplyIsCopied holds that a response of any size may be overwritten once the tunnel has
// it.
func TestEncodedReplyIsCopied(t *testing.T) {
	t.Parallel()
	s := overMemory(t, tunnel.Config{}, tunnel.Config{}, &encodedEcho{})
	for _, size := range []int{0, 1, 300, 8 << 10, 1 << 20} {
		payload := bytes.Repeat([]byte{7}, size)
		call := &tunnel.Call{
			Procedure: "/p/Echo", Request: wrapperspb.Bytes(payload), Response: new(wrapperspb.BytesValue),
		}
		done := make(chan struct{})
		call.Done = func(*tunnel.Call) { close(done) }
		require.NoError(t, s.client.Start(t.Context(), call))
		<-done
		require.NoError(t, call.Err)
		require.Equal(t, payload, append([]byte{}, call.Response.(*wrapperspb.BytesValue).GetValue()...))
	}
}

func TestEncodedReplyThatIsTooLargeFailsItsCall(t *testing.T) {
	t.Parallel()
	s := overMemory(t, tunnel.Config{MaxMessageBytes: 1 << 10}, tunnel.Config{}, &encodedEcho{})
	call := &tunnel.Call{Procedure: "/p/Echo", Request: wrapperspb.Bytes(make([]byte, 2<<10)), Response: new(wrapperspb.BytesValue)}
	done := make(chan struct{})
	call.Done = func(*tunnel.Call) { close(done) }
	require.NoError(t, s.client.Start(t.Context(), call))
	<-done
	require.Equal(t, connect.CodeResourceExhausted, connect.CodeOf(call.Err), "%v", call.Err)
}
