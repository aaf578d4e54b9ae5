package generator

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/compiler/protogen"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/pluginpb"
	"pgregory.net/rapid"

	optionsv1 "github.com/raylink/raylink/gen/raylink/options/v1"
	tensorv1 "github.com/raylink/raylink/gen/raylink/tensor/v1"
	"github.com/raylink/raylink/internal/nodename"
)

// TestNamesNeverMeet draws services and rows whose names are made of the very words that the plugin
// uses, in two files in any order, and checks that no identifier is declared twice, that the
// schema's names stand, and that order changes nothing.
func TestNamesNeverMeet(t *testing.T) {
	words := strings.Fields("A B N Node Unimplemented Type Create Find From NewLocal New Tunnel Register Name Async Ref Service " +
		"ServerStream ClientStream Columns Row _ a 1")
	word := rapid.Custom(func(t *rapid.T) string {
		return "A" + strings.Join(rapid.SliceOfN(rapid.SampledFrom(words), 0, 3).Draw(t, "words"), "")
	})
	rapid.Check(t, func(t *rapid.T) {
		services := rapid.Custom(func(t *rapid.T) *descriptorpb.ServiceDescriptorProto {
			service := &descriptorpb.ServiceDescriptorProto{Name: new(word.Draw(t, "service"))}
			for _, name := range rapid.SliceOfNDistinct(word, 0, 3, rapid.ID).Draw(t, "methods") {
				service.Method = append(service.Method, &descriptorpb.MethodDescriptorProto{
					Name: new(name), InputType: new(".x.M"), OutputType: new(".x.M"),
					ServerStreaming: new(rapid.Bool().Draw(t, "stream")),
				})
			}
			return service
		})
		drawn := rapid.SliceOfNDistinct(services, 1, 6, (*descriptorpb.ServiceDescriptorProto).GetName).Draw(t, "services")
		half := rapid.IntRange(0, len(drawn)).Draw(t, "half")
		fields := rapid.SampledFrom(strings.Fields("len set get Len_ Set_ get_ c i m"))
		rows := rapid.Custom(func(t *rapid.T) *descriptorpb.DescriptorProto {
			message := &descriptorpb.DescriptorProto{Name: new(word.Draw(t, "row")), Options: &descriptorpb.MessageOptions{}}
			proto.SetExtension(message.GetOptions(), optionsv1.E_Row, &optionsv1.RowOptions{})
			for i, name := range rapid.SliceOfNDistinct(fields, 1, 4, rapid.ID).Draw(t, "fields") {
				message.Field = append(message.Field, &descriptorpb.FieldDescriptorProto{
					Name: new(name), Number: new(int32(i) + 1), Type: descriptorpb.FieldDescriptorProto_TYPE_INT32.Enum(),
					Label: descriptorpb.FieldDescriptorProto_LABEL_OPTIONAL.Enum(),
				})
			}
			return message
		})
		messages := rapid.SliceOfNDistinct(rows, 0, 4, (*descriptorpb.DescriptorProto).GetName).Draw(t, "rows")
		first := packageOf(t, messages, drawn[:half], drawn[half:])
		if first == nil {
			t.Skip("two names of the schema are one in Go")
		}
		require.NoError(t, meeting(first))
		slices.Reverse(drawn)
		slices.Reverse(messages)
		require.Equal(t, first.names, packageOf(t, messages, drawn).names)
	})
}

// meeting is the checker: an error where two things of one scope have one name, or a name of the
// schema was changed.
func meeting(pkg *goPackage) error {
	scopes := map[string]map[string]bool{}
	var meetings []error
	declare := func(scope string, names ...string) {
		if scopes[scope] == nil {
			scopes[scope] = map[string]bool{}
		}
		for _, name := range names {
			if scopes[scope][name] {
				meetings = append(meetings, fmt.Errorf("%s is declared twice in %s", name, scope))
			}
			scopes[scope][name] = true
			if scope == "the package" && !pkg.names.taken[name] {
				meetings = append(meetings, fmt.Errorf("imports don't keep clear of %s", name))
			}
		}
	}
	for _, service := range pkg.services {
		own := pkg.names.services[service.Desc.FullName()]
		if own.handle != service.GoName {
			meetings = append(meetings, fmt.Errorf("service %s became %s", service.GoName, own.handle))
		}
		declare("the package", own.handle, own.table, own.handlers)
		for _, kind := range ownNames() {
			declare("the package", *kind.field(own))
		}
		declare(own.handle, own.ref, own.intercepted)
		for _, method := range service.Methods {
			m := own.methods[method.Desc.Name()]
			if m.method != method.GoName {
				meetings = append(meetings, fmt.Errorf("method %s became %s", method.GoName, m.method))
			}
			declare(own.handle, m.method)
			if isStreaming(method) {
				declare("the package", m.serverStream, m.clientStream)
			} else {
				declare(own.handle, m.async)
			}
		}
	}
	for _, row := range pkg.rows {
		own := pkg.names.rows[row.message.Desc.FullName()]
		declare("the package", own.columns, own.row)
		declare(own.columns, own.length, own.set, own.get)
		for _, field := range row.message.Fields {
			declare(own.columns, field.GoName)
		}
	}
	return errors.Join(meetings...)
}

// packageOf is the package of services that stand in several files, and of rows in one of their
// own; nil where two of the schema's own names are one in Go.
func packageOf(t rapid.TB, rows []*descriptorpb.DescriptorProto, files ...[]*descriptorpb.ServiceDescriptorProto) *goPackage {
	req := &pluginpb.CodeGeneratorRequest{ProtoFile: []*descriptorpb.FileDescriptorProto{
		protodesc.ToFileDescriptorProto(descriptorpb.File_google_protobuf_descriptor_proto),
		protodesc.ToFileDescriptorProto(tensorv1.File_raylink_tensor_v1_tensor_proto),
		protodesc.ToFileDescriptorProto(optionsv1.File_raylink_options_v1_options_proto),
		{
			// Of another package, in which a row may have the name of a service.
			Name: new("rows.proto"), Package: new("y"), Syntax: new("proto3"), Dependency: []string{optionSchema},
			Options: &descriptorpb.FileOptions{GoPackage: new("example.com/x")}, MessageType: rows,
		},
	}, FileToGenerate: []string{"rows.proto"}}
	for i, services := range files {
		file := &descriptorpb.FileDescriptorProto{
			Name: new(fmt.Sprintf("%d.proto", i)), Package: new("x"), Syntax: new("proto3"),
			Options: &descriptorpb.FileOptions{GoPackage: new("example.com/x")}, Service: services,
		}
		if i == 0 {
			file.MessageType = []*descriptorpb.DescriptorProto{{Name: new("M")}}
		} else {
			file.Dependency = []string{"0.proto"}
		}
		req.ProtoFile = append(req.ProtoFile, file)
		req.FileToGenerate = append(req.FileToGenerate, file.GetName())
	}
	plugin, err := protogen.Options{}.New(req)
	require.NoError(t, err)
	g := newGenerator(plugin)
	require.Len(t, g.packages, 1)
	g.checkNames(g.packages[0])
	if len(g.problems) > 0 {
		return nil
	}
	return g.packages[0]
}

// TestEveryServiceNameGivesAType checks the promise that any service is a node as it stands.
func TestEveryServiceNameGivesAType(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		name := rapid.StringMatching(`[A-Za-z_][A-Za-z0-9_]{0,12}`).Draw(t, "name")
		require.Empty(t, nodename.BadType(defaultType(name)), "%s gives %s", name, defaultType(name))
	})
	for name, want := range map[string]string{
		"Learner": "learner", "ParameterServer": "parameter-server", "HTTPServer": "http-server", "KVStore2Go": "kv-store2-go",
		"Learner_2": "learner2", "snake_case": "snake-case", "V2": "v2", "__1": "x1", "_": "x", "A": "a", "AB": "ab", "aB": "a-b",
	} {
		require.Equal(t, want, defaultType(name))
	}
}
