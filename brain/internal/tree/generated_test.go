package tree

import (
	"regexp"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/pluginpb"
	"pgregory.net/rapid"

	"github.com/raylink/raylink/cmd/protoc-gen-raylink/generator"
	brainv1 "github.com/raylink/raylink/gen/raylink/brain/v1"
	optionsv1 "github.com/raylink/raylink/gen/raylink/options/v1"
	tensorv1 "github.com/raylink/raylink/gen/raylink/tensor/v1"
)

// TestWhatThePluginAcceptsCanBeRegistered draws service names and node types of all forms and
// lengths. If the plugin generates code for them, Brain must register nodes of them.
func TestWhatThePluginAcceptsCanBeRegistered(t *testing.T) {
	service := rapid.OneOf(
		rapid.StringMatching(`[A-Za-z_][A-Za-z0-9_]{0,140}`),
		rapid.StringMatching(`[A-F][a-f0-9]{7}(_?[a-f0-9]{4}){3}`),
		rapid.Just("BRAIN"),
	)
	kind := rapid.OneOf(
		rapid.Just(""), rapid.Just("BRAIN"), rapid.StringMatching(`[a-z][a-z0-9-]{0,150}`), rapid.StringMatching(`[a-f]{8}-[a-f]{4}-[a-f]{4}-[a-f0-9]{4}`),
		rapid.String(),
	)
	accepted := 0
	rapid.Check(t, func(t *rapid.T) {
		file := &descriptorpb.FileDescriptorProto{
			Name: new("x.proto"), Syntax: new("proto3"), Dependency: []string{"raylink/options/v1/options.proto"},
			Package: new(rapid.StringMatching(`[a-z]{1,8}(\.[a-z]{1,60}){0,8}`).Draw(t, "package")),
			Options: &descriptorpb.FileOptions{GoPackage: new("example.com/x")},
			Service: []*descriptorpb.ServiceDescriptorProto{{Name: new(service.Draw(t, "service"))}},
		}
		if chosen := kind.Draw(t, "type"); chosen != "" {
			file.Service[0].Options = &descriptorpb.ServiceOptions{}
			proto.SetExtension(file.GetService()[0].GetOptions(), optionsv1.E_Node, &optionsv1.NodeOptions{Type: new(chosen)})
		}
		plugin, err := generator.Options().New(&pluginpb.CodeGeneratorRequest{
			FileToGenerate: []string{"x.proto"},
			ProtoFile: []*descriptorpb.FileDescriptorProto{
				protodesc.ToFileDescriptorProto(descriptorpb.File_google_protobuf_descriptor_proto),
				protodesc.ToFileDescriptorProto(tensorv1.File_raylink_tensor_v1_tensor_proto),
				protodesc.ToFileDescriptorProto(optionsv1.File_raylink_options_v1_options_proto),
				file,
			},
		})
		require.NoError(t, err)
		response := generator.Respond(plugin)
		if response.GetError() != "" {
			t.Skip("refused: ", response.GetError())
		}
		accepted++
		code := response.GetFile()[0].GetContent()
		types := regexp.MustCompile(`Type:\s+"([^"]+)"`).FindStringSubmatch(code)
		require.Len(t, types, 2)
		x := New(testRoot(), Limits{}).Begin(time.Now())
		records, err := x.Register(&brainv1.RegisterRequest{
			Type: types[1], Service: file.GetPackage() + "." + file.GetService()[0].GetName(), RequestId: NewUUID(),
		})
		require.NoError(t, err)
		require.Equal(t, types[1]+"-0", records[0].GetName())
		require.Equal(t, ByPath, formOf(records[0].GetName()))
	})
	require.NotZero(t, accepted)
}
