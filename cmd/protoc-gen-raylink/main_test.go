package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/pluginpb"

	schemas "github.com/raylink/raylink/proto"
)

// user.proto names something of every exported schema.
const userSchema = `syntax = "proto3";

package user.v1;

import "raylink/brain/v1/brain.proto";
import "raylink/node/v1/node.proto";
import "raylink/options/v1/options.proto";
import "raylink/ps/v1/ps.proto";
import "raylink/replay/v1/replay.proto";
import "raylink/storage/v1/storage.proto";
import "raylink/tensor/v1/tensor.proto";

option go_package = "example.com/user/gen/user/v1;userv1";

message AskRequest {
  raylink.node.v1.NodeRef node = 1;
  raylink.brain.v1.Where where = 2;
  raylink.ps.v1.Version version = 3;
  raylink.replay.v1.Batch batch = 4;
  raylink.storage.v1.Entry entry = 5;
}

message AskResponse {
  repeated raylink.tensor.v1.Tensor tensors = 1;
  repeated raylink.tensor.v1.Column columns = 2;
}

// User asks.
service User {
  option (raylink.options.v1.node).config = "raylink.replay.v1.ReplayConfig";

  rpc Ask(AskRequest) returns (AskResponse);
}
`

// row.proto is a file of messages alone.
const rowSchema = `syntax = "proto3";

package user.v1;

import "raylink/options/v1/options.proto";

option go_package = "example.com/user/gen/user/v1;userv1";

// Step is a row.
message Step {
  option (raylink.options.v1.row) = {};

  bytes frame = 1 [(raylink.options.v1.column) = {
    dtype: DATA_TYPE_UINT8
    shape: [84, 84]
  }];
  repeated float state = 2 [(raylink.options.v1.column).shape = 17];
  int32 action = 3 [(raylink.options.v1.column).initial = -1];
}
`

// rowUse is a program that uses the row.
const rowUse = `package user_test

import (
	"testing"

	userv1 "example.com/user/gen/user/v1"
	"example.com/user/gen/user/v1/userv1raylink"
)

func TestStep(t *testing.T) {
	columns := userv1raylink.StepRow.New(2)
	if err := columns.Set(1, &userv1.Step{Frame: make([]byte, 7056), State: make([]float32, 17), Action: 7}); err != nil {
		t.Fatal(err)
	}
	step := &userv1.Step{}
	if columns.Get(0, step); step.GetAction() != -1 {
		t.Fatal(step)
	}
	if columns.Get(1, step); step.GetAction() != 7 || columns.Len() != 2 {
		t.Fatal(step)
	}
}
`

const userBuf = `version: v2
modules:
  - path: proto
  - path: third_party
lint:
  except:
    - SERVICE_SUFFIX
`

// TestSchemaThatImportsAllExportedOnesBuilds lints, generates and builds a user's schema with buf,
// in a module of its own: as README.md says, and in managed mode as docs/plugin.md says.
func TestSchemaThatImportsAllExportedOnesBuilds(t *testing.T) {
	tools := os.Getenv("RAYLINK_TOOLS")
	if _, err := os.Stat(filepath.Join(tools, "buf")); err != nil || tools == "" {
		if os.Getenv("CI") != "" {
			t.Fatal("RAYLINK_TOOLS is not where buf is: run the tests by `make test`, after `make tools`")
		}
		t.Skip("exported schemas are not built: RAYLINK_TOOLS is not where buf is (`make tools test` sets it)")
	}
	root, err := filepath.Abs("../..")
	require.NoError(t, err)
	self, err := os.Executable()
	require.NoError(t, err)
	doc, err := os.ReadFile(filepath.Join(root, "docs/plugin.md"))
	require.NoError(t, err)
	recipe := regexp.MustCompile("(?ms)^<!-- file: buf.gen.yaml -->\n```yaml\n(.*?)^```$").FindStringSubmatch(string(doc))
	require.Len(t, recipe, 2, "the recipe of docs/plugin.md")
	managed := strings.ReplaceAll(recipe[1], "example.com/counter", "example.com/user")
	plain, _, _ := strings.Cut(managed, "managed:")
	_, plugins, _ := strings.Cut(managed, "plugins:")
	plain += "plugins:" + strings.ReplaceAll(plugins, "paths=source_relative", "module=example.com/user/gen")
	for name, template := range map[string]string{"plain": plain, "managed": managed} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			schema, rows := userSchema, rowSchema
			if name == "managed" {
				declared := regexp.MustCompile("(?m)^option go_package.*\n\n")
				schema, rows = declared.ReplaceAllString(schema, ""), declared.ReplaceAllString(rows, "")
			}
			write := func(name, content string) {
				require.NoError(t, os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o700))
				require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600))
			}
			write("proto/user/v1/user.proto", schema)
			write("proto/user/v1/row.proto", rows)
			write("row_test.go", rowUse)
			write("buf.yaml", userBuf)
			write("buf.gen.yaml", strings.ReplaceAll(template, "local: protoc-gen-raylink", "local: "+self))
			_, stderr, err := plugin(t, nil, "--export", filepath.Join(dir, "third_party"))
			require.NoError(t, err, stderr)
			sum, err := os.ReadFile(filepath.Join(root, "go.sum"))
			require.NoError(t, err)
			write("go.sum", string(sum))
			mod, err := os.ReadFile(filepath.Join(root, "go.mod"))
			require.NoError(t, err)
			_, requires, _ := strings.Cut(string(mod), "\n")
			write("go.mod", "module example.com/user\n"+requires+
				"\nrequire github.com/raylink/raylink v0.0.0\n\nreplace github.com/raylink/raylink => "+root+"\n")
			for _, args := range [][]string{
				{filepath.Join(tools, "buf"), "lint"}, {filepath.Join(tools, "buf"), "generate"}, {"go", "vet", "./..."}, {"go", "test", "."},
			} {
				cmd := exec.CommandContext(t.Context(), args[0], args[1:]...)
				cmd.Dir = dir
				cmd.Env = append(os.Environ(), asPlugin+"=1", "PATH="+tools+":"+os.Getenv("PATH"), "GOWORK=off", "GOFLAGS=-mod=mod")
				out, err := cmd.CombinedOutput()
				require.NoError(t, err, "%v: %s", args, out)
			}
		})
	}
}

// asPlugin makes this test binary the plugin, so that what runs is main itself in a process of its
// own.
const asPlugin = "RAYLINK_TEST_AS_PLUGIN"

func TestMain(m *testing.M) {
	if os.Getenv(asPlugin) != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

func plugin(t *testing.T, stdin []byte, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	self, err := os.Executable()
	require.NoError(t, err)
	cmd := exec.CommandContext(t.Context(), self, args...)
	cmd.Env = append(os.Environ(), asPlugin+"=1")
	cmd.Stdin = bytes.NewReader(stdin)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err = cmd.Run()
	return out.String(), errs.String(), err
}

func TestPluginAnswersARequest(t *testing.T) {
	req, err := proto.Marshal(&pluginpb.CodeGeneratorRequest{
		FileToGenerate: []string{"x.proto"},
		ProtoFile: []*descriptorpb.FileDescriptorProto{{
			Name: new("x.proto"), Syntax: new("proto3"),
			Options: &descriptorpb.FileOptions{GoPackage: new("example.com/x")},
			Service: []*descriptorpb.ServiceDescriptorProto{{Name: new("S")}},
		}},
	})
	require.NoError(t, err)
	stdout, stderr, err := plugin(t, req)
	require.NoError(t, err, stderr)
	res := &pluginpb.CodeGeneratorResponse{}
	require.NoError(t, proto.Unmarshal([]byte(stdout), res))
	require.Empty(t, res.GetError())
	require.Len(t, res.GetFile(), 1)
	assert.Equal(t, "example.com/x/xraylink/x.raylink.go", res.GetFile()[0].GetName())
}

// exported are the schemas that users can import.
var exported = []string{
	"raylink/agent/v1/agent.proto", "raylink/brain/v1/access.proto", "raylink/brain/v1/brain.proto", "raylink/machine/v1/machine.proto",
	"raylink/node/v1/node.proto", "raylink/options/v1/options.proto", "raylink/ps/v1/ps.proto", "raylink/replay/v1/replay.proto",
	"raylink/storage/v1/storage.proto", "raylink/tensor/v1/tensor.proto",
}

func TestExportedSchemasAreThoseOfTheProject(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "third_party")
	for _, args := range [][]string{{"--export", dir}, {"--export=" + dir}} {
		stdout, stderr, err := plugin(t, nil, args...)
		require.NoError(t, err, stderr)
		for _, name := range exported {
			assert.Contains(t, stdout, filepath.Join(dir, name)+"\n")
			want, err := schemas.Schemas.ReadFile(name)
			require.NoError(t, err)
			got, err := os.ReadFile(filepath.Join(dir, name))
			require.NoError(t, err)
			assert.Equal(t, string(want), string(got))
		}
	}
}

func TestExportSaysWhyItCannot(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	_, stderr, err := plugin(t, nil, "--export", file)
	require.Error(t, err)
	assert.Contains(t, stderr, "protoc-gen-raylink: export: ")
	assert.Contains(t, stderr, file)
}

func TestVersionAndHelp(t *testing.T) {
	stdout, _, err := plugin(t, nil, "--version")
	require.NoError(t, err)
	assert.Regexp(t, `^protoc-gen-raylink \S+\n$`, stdout)
	stdout, _, err = plugin(t, nil, "--help")
	require.NoError(t, err)
	assert.Contains(t, stdout, "--export DIR")
}

func TestUnknownArgumentsAreRefused(t *testing.T) {
	for _, args := range [][]string{
		{"--exprot", "x"}, {"--export"}, {"--export="}, {"--export", "a", "b"}, {"--version", "x"}, {"x.proto"},
	} {
		stdout, stderr, err := plugin(t, nil, args...)
		require.Error(t, err, args)
		assert.Empty(t, stdout)
		assert.Contains(t, stderr, "protoc-gen-raylink: ")
	}
}
