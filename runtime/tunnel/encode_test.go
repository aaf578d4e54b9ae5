package tunnel_test

import (
	"context"
	"testing"
	"testing/synctest"

	"connectrpc.com/connect/v2"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/runtime/protoiface"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/raylink/raylink/runtime/tunnel"
)

// changing is a message for which protobuf panics, as it may for one that is modified while it is
// being encoded.
type changing struct{ *wrapperspb.BytesValue }

func (c changing) ProtoReflect() protoreflect.Message {
	return changingMessage{c.BytesValue.ProtoReflect()}
}

type changingMessage struct{ protoreflect.Message }

func (changingMessage) ProtoMethods() *protoiface.Methods {
	return &protoiface.Methods{
		Size:    func(protoiface.SizeInput) protoiface.SizeOutput { return protoiface.SizeOutput{Size: 10} },
		Marshal: func(protoiface.MarshalInput) (protoiface.MarshalOutput, error) { panic("it is longer than it was") },
	}
}

// TestUnencodableMessageFailsItsSenderOnly: other calls on the connection are not affected.
func TestUnencodableMessageFailsItsSenderOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bad := changing{wrapperspb.Bytes([]byte("x"))}
		h := echo()
		h.unary = func(in *tunnel.Incoming) {
			if in.Procedure == "/p/Bad" {
				in.Reply(bad, nil)
				return
			}
			echoUnary(in)
		}
		s := overMemory(t, tunnel.Config{}, tunnel.Config{}, h)
		stream := bidi(t.Context(), t, s.client)
		require.NoError(t, stream.Send(wrapperspb.Bytes([]byte("y"))))
		for range 2 {
			err := s.client.Start(context.Background(), &tunnel.Call{Procedure: "/p/P", Request: bad})
			require.Equal(t, connect.CodeInternal, connect.CodeOf(err))
			require.ErrorContains(t, err, "changed while it is being sent")
			_, done, err := start(t.Context(), s.client, "/p/Bad", 1)
			require.NoError(t, err)
			require.Equal(t, connect.CodeInternal, connect.CodeOf(<-done))
			require.Equal(t, connect.CodeInternal, connect.CodeOf(stream.Send(bad)))
			roundTrip(t, s.client, 16)
			require.NoError(t, stream.Send(wrapperspb.Bytes([]byte("z"))))
		}
		require.NoError(t, stream.CloseSend())
		for range 3 {
			require.NoError(t, stream.Receive(&wrapperspb.BytesValue{}))
		}
	})
}
