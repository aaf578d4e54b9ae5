package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/pluginpb"

	codev1 "github.com/raylink/raylink/bench/gen/code/v1"
	"github.com/raylink/raylink/cmd/protoc-gen-raylink/generator"
)

// benchModule is the module that the measured programs are built in.
const benchModule = "github.com/raylink/raylink/bench"

// codeParts are the parts of a system's programs. All programs link the system's library and the
// messages.
type codeParts struct {
	// library is a list of imports, generated the import path of the service's code.
	library, generated string
	// declarations use the library; host and client use the generated code, which is imported as g.
	declarations, host, client string
}

//nolint:gochecknoglobals // a table
var codeSystems = map[string]codeParts{
	"raylink": {
		library:      `"github.com/raylink/raylink"; "github.com/raylink/raylink/runtime"`,
		generated:    benchModule + "/gen/code/v1/codev1raylink",
		declarations: "var options []raylink.Option; var system, _ = raylink.Init(ctx, options...); var node *runtime.Node",
		host: "options = append(options, g.WideType(func(context.Context, *runtime.Node) (g.WideNode, error) " +
			"{ return g.UnimplementedWideNode{}, nil }))",
		client: "h, _ := g.FindWide(ctx, system, runtime.Where{})",
	},
	"connect-h2c": {
		library:      `"connectrpc.com/connect/v2"`,
		generated:    benchModule + "/gen/code/v1/codev1connect",
		declarations: "var server, client = connect.NewServer(), connect.NewClient(nil)",
		host:         "g.RegisterWideHandler(server, g.UnimplementedWideHandler{})",
		client:       "h := g.NewWideClient(client)",
	},
	"grpc-go": {
		library:      `"google.golang.org/grpc"`,
		generated:    benchModule + "/gen/code/v1",
		declarations: "var server = grpc.NewServer(); var client, _ = grpc.NewClient(\"\")",
		host:         "g.RegisterWideServer(server, g.UnimplementedWideServer{})",
		client:       "h := g.NewWideClient(client)",
	},
}

// wideMethods returns the methods of the service whose code is measured.
func wideMethods() protoreflect.MethodDescriptors {
	return codev1.File_code_v1_code_proto.Services().ByName("Wide").Methods()
}

// program returns a program's source: without the service's code, with the code merely imported, or
// with the service hosted and all of its methods called.
func (p *codeParts) program(k kind) string {
	generated, body := "", ""
	switch k {
	case codeImported:
		generated = fmt.Sprintf("; _ %q", p.generated)
	case codeUsed:
		generated = fmt.Sprintf("; g %q", p.generated)
		var calls strings.Builder
		for i := range wideMethods().Len() {
			m := wideMethods().Get(i)
			request := fmt.Sprintf(", &codev1.%s{}", m.Input().Name())
			if m.IsStreamingClient() {
				request = ""
			}
			fmt.Fprintf(&calls, "\t_, _ = h.%s(ctx%s)\n", m.Name(), request)
		}
		body = "\t" + p.host + "\n\t" + p.client + "\n" + calls.String()
	default: // without the service's code
	}
	return fmt.Sprintf("package main\n\nimport (\"context\"; codev1 %q; %s%s)\n\n"+
		"var ctx = context.Background()\nvar file = codev1.File_code_v1_code_proto\n%s\n\nfunc main() {\n%s}\n",
		benchModule+"/gen/code/v1", p.library, generated, p.declarations, body)
}

// measureCode builds two programs, without and with the code that the row measures. The result is
// the difference of their sizes per method.
func (d *driver) measureCode(ctx context.Context, r *row, system string, res *results) error {
	p, ok := codeSystems[system]
	if !ok {
		return fmt.Errorf("the generated code of %s is not measured", system)
	}
	module, err := moduleDir()
	if err != nil {
		return err
	}
	var sizes [2]int64
	for i, k := range []kind{codeNone, r.job.Kind} {
		dir, err := os.MkdirTemp(d.dir, "code-")
		if err != nil {
			return err
		}
		source, program := filepath.Join(dir, "main.go"), filepath.Join(dir, "program")
		if err := os.WriteFile(source, []byte(p.program(k)), 0o600); err != nil {
			return err
		}
		build := exec.CommandContext(ctx, "go", "build", "-o", program, source)
		build.Dir = module
		if out, err := build.CombinedOutput(); err != nil {
			return fmt.Errorf("build program of %s (%s): %w\n%s", system, k, err, out)
		}
		info, err := os.Stat(program)
		if err != nil {
			return err
		}
		sizes[i] = info.Size()
	}
	res.add(r.name, system, figures{value: float64(sizes[1]-sizes[0]) / float64(wideMethods().Len())})
	return nil
}

// moduleDir returns the directory of this module's sources. The working directory must be the
// repository's root or the module.
func moduleDir() (string, error) {
	for _, dir := range []string{"bench", "."} {
		raw, err := os.ReadFile(filepath.Join(dir, "go.mod"))
		if err == nil && strings.HasPrefix(string(raw), "module "+benchModule+"\n") {
			return filepath.Abs(dir)
		}
	}
	return "", errors.New("can't build programs: the benchmark's sources are not found; run it from the repository's root")
}

// measurePlugin measures the CPU time of the plugin for many files of five methods each.
func (d *driver) measurePlugin(r *row, res *results) error {
	plugin, err := generator.Options().New(manyFiles(r.job.Size))
	if err != nil {
		return err
	}
	before := processorTime()
	response := generator.Respond(plugin)
	used := processorTime() - before
	if response.GetError() != "" {
		return errors.New(response.GetError())
	}
	if got := len(response.GetFile()); got != r.job.Size {
		return fmt.Errorf("the plugin generated %d files instead of %d", got, r.job.Size)
	}
	res.add(r.name, "raylink", figures{value: float64(used) / float64(time.Microsecond) / float64(r.job.Size)})
	return nil
}

// manyFiles returns a request for n files, each with a service of five methods, in packages of four
// files.
func manyFiles(n int) *pluginpb.CodeGeneratorRequest {
	req := &pluginpb.CodeGeneratorRequest{}
	for i := range n {
		name, pkg := fmt.Sprintf("api/p%d/f%d.proto", i/4, i), fmt.Sprintf("api.p%d", i/4)
		file := &descriptorpb.FileDescriptorProto{
			Name: &name, Package: &pkg, Syntax: new("proto3"),
			Options: &descriptorpb.FileOptions{GoPackage: new(fmt.Sprintf("example.com/api/p%d", i/4))},
		}
		service := &descriptorpb.ServiceDescriptorProto{Name: new(fmt.Sprintf("Service%d", i))}
		for j := range 5 {
			in, out := fmt.Sprintf("Do%d%dRequest", i, j), fmt.Sprintf("Do%d%dResponse", i, j)
			file.MessageType = append(file.MessageType, &descriptorpb.DescriptorProto{Name: &in}, &descriptorpb.DescriptorProto{Name: &out})
			service.Method = append(service.Method, &descriptorpb.MethodDescriptorProto{
				Name: new(fmt.Sprintf("Do%d", j)), InputType: new("." + pkg + "." + in), OutputType: new("." + pkg + "." + out),
				ServerStreaming: new(j == 4),
			})
		}
		file.Service = append(file.Service, service)
		req.ProtoFile = append(req.ProtoFile, file)
		req.FileToGenerate = append(req.FileToGenerate, name)
	}
	return req
}
