package codec

import (
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
	"pgregory.net/rapid"
)

// large draws bytes of which some are worth aliasing.
func large(t *rapid.T, label string) []byte {
	return make([]byte, rapid.SampledFrom([]int{0, 1, aliasedBytes - 1, aliasedBytes, 3 * aliasedBytes}).Draw(t, label))
}

// TestDecodeAliasingEqualsUnmarshal compares with protobuf's decoder on messages with repeated,
// reordered, unknown and truncated fields.
func TestDecodeAliasingEqualsUnmarshal(t *testing.T) {
	fresh := []func() proto.Message{
		func() proto.Message { return &wrapperspb.BytesValue{} },
		func() proto.Message { return &anypb.Any{} },
		func() proto.Message { return &structpb.Struct{} },                      // a map, of messages with a oneof
		func() proto.Message { return &descriptorpb.UninterpretedOption{} },     // proto2, bytes beside a list of messages with required fields
		func() proto.Message { return &descriptorpb.FileOptions{} },             // a list of such
		func() proto.Message { return &descriptorpb.FileDescriptorProto{} },     // strings, and messages in messages
		func() proto.Message { return &descriptorpb.SourceCodeInfo_Location{} }, // packed numbers
	}
	rapid.Check(t, func(t *rapid.T) {
		of := rapid.SampledFrom(fresh).Draw(t, "type")
		var b []byte
		for range rapid.IntRange(0, 5).Draw(t, "fields") {
			num := protowire.Number(rapid.SampledFrom([]int{1, 2, 3, 7, 8, 999}).Draw(t, "number"))
			value := large(t, "value")
			switch rapid.IntRange(0, 3).Draw(t, "kind") {
			case 0:
				b = protowire.AppendTag(b, num, protowire.VarintType)
				b = protowire.AppendVarint(b, rapid.Uint64().Draw(t, "varint"))
			case 1: // a message with one field
				inner := protowire.AppendBytes(protowire.AppendTag(nil, num, protowire.BytesType), value)
				b = protowire.AppendBytes(protowire.AppendTag(b, num, protowire.BytesType), inner)
			default:
				b = protowire.AppendBytes(protowire.AppendTag(b, num, protowire.BytesType), value)
			}
		}
		if rapid.IntRange(0, 9).Draw(t, "cut") == 0 {
			b = b[:len(b)-rapid.IntRange(0, len(b)).Draw(t, "off")]
		}
		want, got := of(), of()
		wantErr := proto.Unmarshal(b, want)
		aliases, gotErr := DecodeAliasing(b, got)
		require.Equal(t, wantErr == nil, gotErr == nil, "%v, %v", wantErr, gotErr)
		if wantErr == nil {
			require.True(t, proto.Equal(want, got), "aliases: %v", aliases)
		}
	})
}

func TestLargeBytesAreAliased(t *testing.T) {
	b, err := proto.Marshal(wrapperspb.Bytes(make([]byte, 10*aliasedBytes)))
	require.NoError(t, err)
	msg := &wrapperspb.BytesValue{}
	aliases, err := DecodeAliasing(b, msg)
	require.NoError(t, err)
	require.True(t, aliases)
	value := msg.GetValue()
	require.Same(t, &b[len(b)-1], &value[len(value)-1])
	require.Equal(t, len(value), cap(value), "an append must not write to what is behind")
	// A small part of a large message does not hold on to all of it.
	list := &structpb.ListValue{Values: []*structpb.Value{structpb.NewStringValue(string(make([]byte, 10*aliasedBytes)))}}
	b, err = proto.Marshal(list)
	require.NoError(t, err)
	aliases, err = DecodeAliasing(b, list)
	require.NoError(t, err)
	require.False(t, aliases)
}

func FuzzDecodeAliasing(f *testing.F) {
	b, err := proto.Marshal(wrapperspb.Bytes(make([]byte, 2*aliasedBytes)))
	require.NoError(f, err)
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		want, got := &wrapperspb.BytesValue{}, &wrapperspb.BytesValue{}
		wantErr := proto.Unmarshal(b, want)
		_, gotErr := DecodeAliasing(b, got)
		require.Equal(t, wantErr == nil, gotErr == nil)
		if wantErr == nil {
			require.True(t, proto.Equal(want, got))
		}
	})
}
