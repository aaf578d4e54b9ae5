package protocheck_test

import (
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/raylink/raylink/internal/protocheck"
)

const bad = "caf\xe9"

// What is found is what protobuf's encoder refuses, and nothing else.
func TestFindsWhatTheEncoderRefuses(t *testing.T) {
	part := &descriptorpb.UninterpretedOption_NamePart{NamePart: new("x")} // is_extension is required
	for _, test := range []struct {
		name, path, text string
		reason           protocheck.Reason
		msg              proto.Message
	}{
		{"nothing", "", "", 0, nil},
		{"no text", "", "", 0, wrapperspb.String("fine")},
		{"octets", "", "", 0, wrapperspb.Bytes([]byte(bad))},
		{"text of proto2", "", "", 0, &descriptorpb.UninterpretedOption{IdentifierValue: new(bad)}},
		{"a field", "value", bad, protocheck.NotUTF8, wrapperspb.String(bad)},
		{"a key", `fields["caf�"]`, bad, protocheck.NotUTF8, &structpb.Struct{
			Fields: map[string]*structpb.Value{bad: structpb.NewBoolValue(true)},
		}},
		{
			"in a list and a map", `values[1].struct_value.fields["k"].string_value`, bad, protocheck.NotUTF8,
			&structpb.ListValue{Values: []*structpb.Value{
				structpb.NewNumberValue(1),
				structpb.NewStructValue(&structpb.Struct{Fields: map[string]*structpb.Value{"k": structpb.NewStringValue(bad)}}),
			}},
		},
		{
			"a required field", "uninterpreted_option[0].name[0].is_extension", "", protocheck.Missing,
			&descriptorpb.FileOptions{UninterpretedOption: []*descriptorpb.UninterpretedOption{
				{Name: []*descriptorpb.UninterpretedOption_NamePart{part}},
			}},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			found := protocheck.First(test.msg)
			_, err := proto.Marshal(test.msg)
			require.Equal(t, err != nil, found != nil, "%v; the encoder: %v", found, err)
			if found != nil {
				require.Equal(t, [3]any{test.reason, test.path, test.text}, [3]any{found.Reason, found.Path, found.Text})
				require.ErrorContains(t, found, string(found.Field.FullName()))
			}
		})
	}
}
