package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/pluginpb"

	schemas "github.com/raylink/raylink/proto"
)

// asPlugin makes this test binary the plugin, so that what runs is main itself in a process of its own.
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

func TestExportedSchemasAreThoseOfTheProject(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "third_party")
	for _, args := range [][]string{{"--export", dir}, {"--export=" + dir}} {
		stdout, stderr, err := plugin(t, nil, args...)
		require.NoError(t, err, stderr)
		for _, name := range []string{"raylink/options/v1/options.proto", "raylink/node/v1/node.proto"} {
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

func TestArgumentsThatNobodyKnows(t *testing.T) {
	for _, args := range [][]string{
		{"--exprot", "x"}, {"--export"}, {"--export="}, {"--export", "a", "b"}, {"--version", "x"}, {"x.proto"},
	} {
		stdout, stderr, err := plugin(t, nil, args...)
		require.Error(t, err, args)
		assert.Empty(t, stdout)
		assert.Contains(t, stderr, "protoc-gen-raylink: ")
	}
}
