package codec

import (
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/runtime/protoiface"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// changing is a message for which protobuf panics, as it may for one that is modified concurrently.
type changing struct{ *wrapperspb.BytesValue }

func (c changing) ProtoReflect() protoreflect.Message {
	return changingMessage{c.BytesValue.ProtoReflect()}
}

type changingMessage struct{ protoreflect.Message }

func (changingMessage) ProtoMethods() *protoiface.Methods {
	return &protoiface.Methods{
		Size:    func(protoiface.SizeInput) protoiface.SizeOutput { panic("it is shorter than it was") },
		Marshal: func(protoiface.MarshalInput) (protoiface.MarshalOutput, error) { panic("it is longer than it was") },
	}
}

func TestNilIsTheEmptyMessage(t *testing.T) {
	size, err := Size(nil)
	require.NoError(t, err)
	require.Zero(t, size)
	b, err := Append([]byte("before"), nil, 0)
	require.NoError(t, err)
	require.Equal(t, "before", string(b))
	b, err = AppendUnsized(b, nil)
	require.NoError(t, err)
	require.Equal(t, "before", string(b))
	e, err := Encode(nil, 0)
	require.NoError(t, err)
	require.Zero(t, e.Size)
	e.Free()
}

func TestAppendEqualsMarshal(t *testing.T) {
	msg := wrapperspb.String("text")
	want, err := proto.Marshal(msg)
	require.NoError(t, err)
	size, err := Size(msg)
	require.NoError(t, err)
	require.Equal(t, len(want), size)
	sized, err := Append([]byte("before"), msg, size)
	require.NoError(t, err)
	require.Equal(t, "before"+string(want), string(sized))
	unsized, err := AppendUnsized([]byte("before"), msg)
	require.NoError(t, err)
	require.Equal(t, sized, unsized)
	decoded := &wrapperspb.StringValue{}
	require.NoError(t, Decode(want, decoded))
	require.Equal(t, "text", decoded.GetValue())
}

func TestChangedMessageIsAnError(t *testing.T) {
	msg := wrapperspb.String("text")
	size, err := Size(msg)
	require.NoError(t, err)
	b, err := Append([]byte("before"), msg, size+1)
	require.ErrorIs(t, err, ErrChanged)
	require.Equal(t, "before", string(b))
	bad := changing{wrapperspb.Bytes([]byte("x"))}
	_, err = Size(bad)
	require.ErrorIs(t, err, ErrPanicked)
	_, err = AppendUnsized(nil, bad)
	require.ErrorIs(t, err, ErrPanicked)
	_, err = Encode(bad, 10)
	require.ErrorIs(t, err, ErrPanicked)
}

// TestAppendDoesNotAllocate: encoding into a buffer with room needs no allocation.
func TestAppendDoesNotAllocate(t *testing.T) {
	msg := wrapperspb.String("text")
	b := make([]byte, 0, MinBuffer)
	require.Zero(t, testing.AllocsPerRun(100, func() {
		size, _ := Size(msg)
		_, _ = Append(b, msg, size)
		_, _ = AppendUnsized(b, msg)
	}))
}
