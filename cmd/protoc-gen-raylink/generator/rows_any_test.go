package generator_test

import (
	"go/format"
	"go/parser"
	"go/token"
	"math"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/descriptorpb"
	"pgregory.net/rapid"

	optionsv1 "github.com/raylink/raylink/gen/raylink/options/v1"
	tensorv1 "github.com/raylink/raylink/gen/raylink/tensor/v1"
)

// TestAnyRowIsGeneratedOrRefused draws rows of any fields and options: the plugin either writes Go
// that gofmt leaves alone, or has a reason for each field that it refuses.
func TestAnyRowIsGeneratedOrRefused(t *testing.T) {
	base := request(t, rowSchema("int32 f = 1; string g = 2;"), "", "x.proto")
	accepted := 0
	rapid.Check(t, func(t *rapid.T) {
		req := proto.CloneOf(base)
		file := req.GetProtoFile()[len(req.GetProtoFile())-1]
		var message *descriptorpb.DescriptorProto
		for _, m := range file.GetMessageType() {
			if m.GetName() == "R" {
				message = m
			}
		}
		message.Field = nil
		for i := range rapid.IntRange(0, 4).Draw(t, "fields") {
			field := &descriptorpb.FieldDescriptorProto{
				Name: new(string(rune('a' + i))), Number: new(int32(i) + 1), Options: &descriptorpb.FieldOptions{},
				Type: rapid.SampledFrom([]descriptorpb.FieldDescriptorProto_Type{
					1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 13, 15, 16, 17, 18,
				}).Draw(t, "type").Enum(),
				Label: rapid.SampledFrom([]descriptorpb.FieldDescriptorProto_Label{1, 3}).Draw(t, "label").Enum(),
			}
			if rapid.Bool().Draw(t, "configured") {
				options := &optionsv1.ColumnOptions{
					Shape: rapid.SliceOfN(rapid.OneOf(rapid.Uint64Range(1, 9), rapid.Uint64()), 0, 3).Draw(t, "shape"),
				}
				if rapid.Bool().Draw(t, "typed") {
					options.Dtype = tensorv1.DataType(rapid.Int32Range(-1, 15).Draw(t, "dtype")).Enum()
				}
				if rapid.Bool().Draw(t, "initialized") {
					options.Initial = new(rapid.OneOf(rapid.Float64(), rapid.Float64Range(-300, 300),
						rapid.SampledFrom([]float64{0, 1, -1, 255, math.NaN(), math.Inf(1)})).Draw(t, "initial"))
				}
				proto.SetExtension(field.GetOptions(), optionsv1.E_Column, options)
			}
			message.Field = append(message.Field, field)
		}
		response := runPlugin(t, req)
		if refused := response.GetError(); refused != "" {
			for line := range strings.SplitSeq(refused, "\n") {
				require.Regexp(t, `^x\.proto:\d+:\d+: (field x\.R\.\w|message x\.R): .+`, line)
			}
			return
		}
		accepted++
		require.Len(t, response.GetFile(), 1)
		content := response.GetFile()[0].GetContent()
		_, err := parser.ParseFile(token.NewFileSet(), "x.go", content, 0)
		require.NoError(t, err)
		formatted, err := format.Source([]byte(content))
		require.NoError(t, err)
		require.Equal(t, string(formatted), content)
	})
	require.Positive(t, accepted, "some are accepted")
}
