package codec

import (
	"bytes"
	"testing"
	"unsafe" //nolint:depguard // to compare addresses

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
	"pgregory.net/rapid"
)

// written returns the bytes of an encoded message, taken in fragments of random sizes.
func written(t *rapid.T, e *Encoded) []byte {
	var b []byte
	for rest := e.Size; rest > 0; {
		n := rapid.IntRange(1, rest).Draw(t, "fragment")
		e.Next(n, func(part []byte) { b = append(b, part...) })
		rest -= n
	}
	return b
}

// option draws a message with bytes beside a list of messages with required fields.
func option(t *rapid.T) *descriptorpb.UninterpretedOption {
	o := &descriptorpb.UninterpretedOption{StringValue: large(t, "string value")}
	for range rapid.IntRange(0, 3).Draw(t, "names") {
		o.Name = append(o.Name, &descriptorpb.UninterpretedOption_NamePart{NamePart: new("name"), IsExtension: new(true)})
	}
	return o
}

// TestPartsDecodeToMessage draws messages with large fields at the top, in messages and in
// lists of them, and decodes their parts with protobuf.
func TestPartsDecodeToMessage(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var msg proto.Message
		switch rapid.IntRange(0, 4).Draw(t, "type") {
		case 0:
			msg = wrapperspb.Bytes(large(t, "value"))
		case 1:
			packed := &anypb.Any{TypeUrl: "of/it", Value: large(t, "value")}
			packed.ProtoReflect().SetUnknown([]byte("\x9a\x3e\x01x")) // field 995
			msg = packed
		case 2:
			msg = option(t)
		case 3:
			options := &descriptorpb.FileOptions{GoPackage: new("here")}
			for range rapid.IntRange(0, 20).Draw(t, "options") {
				options.UninterpretedOption = append(options.UninterpretedOption, option(t))
			}
			msg = &descriptorpb.FileDescriptorProto{Name: new("file"), Options: options}
		default: // no bytes anywhere, a map, a oneof
			msg = &structpb.Struct{Fields: map[string]*structpb.Value{"k": structpb.NewStringValue(string(large(t, "text")))}}
		}
		e, err := Encode(msg, proto.Size(msg))
		require.NoError(t, err)
		require.Equal(t, proto.Size(msg), e.Size)
		read := msg.ProtoReflect().New().Interface()
		require.NoError(t, proto.Unmarshal(written(t, e), read))
		require.True(t, proto.Equal(msg, read))
		e.Free()
	})
}

func TestLargeFieldIsNotCopied(t *testing.T) {
	value := bytes.Repeat([]byte("x"), 1<<20)
	msg := &anypb.Any{TypeUrl: "of/it", Value: value}
	e, err := Encode(msg, proto.Size(msg))
	require.NoError(t, err)
	shared := 0
	e.Next(e.Size, func(part []byte) {
		if unsafe.SliceData(part) == unsafe.SliceData(value) {
			shared += len(part)
		}
	})
	require.Equal(t, len(value), shared)
}

func TestRequiredFieldsAreCheckedInParts(t *testing.T) {
	msg := &descriptorpb.UninterpretedOption{StringValue: make([]byte, 1<<20), Name: []*descriptorpb.UninterpretedOption_NamePart{{}}}
	_, err := Encode(msg, proto.Size(msg))
	require.Error(t, err)
	require.Equal(t, proto.CheckInitialized(msg).Error(), err.Error())
}

// TestLongListsAreNotSearched: looking for large fields must not cost more than encoding.
func TestLongListsAreNotSearched(t *testing.T) {
	list := &structpb.ListValue{}
	for range 10_000 {
		list.Values = append(list.Values, structpb.NewStringValue("small"))
	}
	visited := 0
	_, where := largeBytes(list, proto.Size(list))
	for fd := range list.ProtoReflect().Range {
		if list.ProtoReflect().Get(fd).List().Len() <= where.most {
			visited++
		}
	}
	require.Zero(t, visited)
}
