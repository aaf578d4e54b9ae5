package generator_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/types/descriptorpb"
)

// TestSymbolsKnowTheirPlaceInTheSchema reads the annotations as an editor does that jumps from
// generated code to the schema.
func TestSymbolsKnowTheirPlaceInTheSchema(t *testing.T) {
	const name = "shapes/shapesv1raylink/shapes.raylink.go"
	files := outputs(t, generate(t, request(t, testdata(t, "shapes"), "annotate_code,module="+module, "shapes/shapes.proto")))
	require.Len(t, files, 2)
	info := &descriptorpb.GeneratedCodeInfo{}
	require.NoError(t, prototext.Unmarshal([]byte(files[name+".meta"]), info))

	// The symbols that came from each place: [6, service] or [6, service, 2, method].
	service, method, stream := map[string]bool{}, map[string]bool{}, map[string]bool{}
	for _, a := range info.GetAnnotation() {
		assert.Equal(t, "shapes/shapes.proto", a.GetSourceFile())
		symbol := files[name][a.GetBegin():a.GetEnd()]
		switch {
		case len(a.GetPath()) == 2 && a.GetPath()[1] == 0:
			service[symbol] = true
		case len(a.GetPath()) == 4 && a.GetPath()[1] == 0 && a.GetPath()[3] == 0:
			method[symbol] = true
		case len(a.GetPath()) == 4 && a.GetPath()[1] == 0 && a.GetPath()[3] == 3:
			stream[symbol] = true
		}
	}
	assert.Equal(t, set("EchoName EchoNode UnimplementedEchoNode EchoType Echo Ref Intercepted CreateEcho CreateEchoN FindEcho EchoFrom "+
		"NewLocalEcho RegisterEchoTunnel NewEchoTunnel"), service)
	assert.Equal(t, set("Say SayAsync"), method)
	assert.Equal(t, set("Repeat EchoRepeatServerStream EchoRepeatClientStream"), stream)
}

// TestSymbolsOfRowsKnowTheirPlaceInTheSchema is the same for messages and fields: [4, message] or
// [4, message, 2, field].
func TestSymbolsOfRowsKnowTheirPlaceInTheSchema(t *testing.T) {
	const name = "rowclash/rowraylink/rowclash.raylink.go"
	files := outputs(t, generate(t, request(t, testdata(t, "rowclash"), "annotate_code,module="+module, "rowclash/rowclash.proto")))
	info := &descriptorpb.GeneratedCodeInfo{}
	require.NoError(t, prototext.Unmarshal([]byte(files[name+".meta"]), info))
	message, field := map[string]bool{}, map[string]bool{}
	for _, a := range info.GetAnnotation() {
		symbol := files[name][a.GetBegin():a.GetEnd()]
		switch path := a.GetPath(); {
		case len(path) == 2 && path[0] == 4 && path[1] == 0:
			message[symbol] = true
		case len(path) == 4 && path[0] == 4 && path[1] == 0 && path[3] == 0:
			field[symbol] = true
		}
	}
	assert.Equal(t, set("StepColumns StepRow Len__ Set_ Get_"), message)
	assert.Equal(t, set("Len"), field)
}

func TestNoAnnotationsUnlessAskedFor(t *testing.T) {
	files := testdata(t, "nameclash")
	assert.Len(t, outputs(t, generate(t, request(t, files, "", "nameclash/nameclash.proto"))), 1)
	// Names that have yielded are found too: a symbol that isn't there would be an error.
	assert.Len(t, outputs(t, generate(t, request(t, files, "annotate_code", "nameclash/nameclash.proto"))), 2)
}

func set(words string) map[string]bool {
	found := map[string]bool{}
	for word := range strings.FieldsSeq(words) {
		found[word] = true
	}
	return found
}
