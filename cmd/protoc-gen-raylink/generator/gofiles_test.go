package generator_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// fileNames are names of schemas, and what is wrong with the Go files that become of them.
var fileNames = map[string]string{
	"nodes_windows.proto":    `Go builds nodes_windows.pb.go for one operating system or architecture alone, because its name ends in "_windows"; rename the file`,
	"eval_arm64.proto":       `Go builds eval_arm64.pb.go for one operating system or architecture alone, because its name ends in "_arm64"; rename the file`,
	"robot_arm.proto":        `Go builds robot_arm.pb.go for one operating system or architecture alone, because its name ends in "_arm"; rename the file`,
	"x_linux_amd64.proto":    `Go builds x_linux_amd64.pb.go for one operating system or architecture alone, because its name ends in "_amd64"; rename the file`,
	"x_linux.proto":          `Go builds x_linux.pb.go for one operating system or architecture alone, because its name ends in "_linux"; rename the file`,
	"x_js_test.proto":        `Go builds x_js_test.pb.go for one operating system or architecture alone, because its name ends in "_js"; rename the file`,
	"x_windows.v1.proto":     `Go builds x_windows.v1.pb.go for one operating system or architecture alone, because its name ends in "_windows"; rename the file`,
	"_x.proto":               `Go skips files whose names begin with "_", as _x.pb.go does; rename the file`,
	".x.proto":               `Go skips files whose names begin with ".", as .x.pb.go does; rename the file`,
	"-x.proto":               `Go refuses files whose names begin with "-", as -x.pb.go does; rename the file`,
	"@x.proto":               `Go refuses files whose names begin with "@", as @x.pb.go does; rename the file`,
	"windows.proto":          "",
	"x_unix.proto":           "",
	"x_test.proto":           "",
	"x_windows_.proto":       "",
	"x.v1_windows.proto":     "",
	"arm.proto":              "",
	"robot_arms.proto":       "",
	"my model.proto":         "",
	"läufer.proto":           "",
	"x-windows.proto":        "",
	"a-b.c_test.proto":       "",
	"x_windows_server.proto": "",
}

const oneService = "syntax = \"proto3\";\noption go_package = \"example.com/x\";\nmessage M {}\nservice S { rpc Do(M) returns (M); }"

// TestFilesThatGoSkipsAreRefused has a service in files of all kinds of names.
func TestFilesThatGoSkipsAreRefused(t *testing.T) {
	for name, reason := range fileNames {
		want := ""
		if reason != "" {
			want = name + ":1:1: " + reason
		}
		assert.Equal(t, want, generate(t, request(t, sources{name: oneService}, "", name)).GetError(), name)
	}
}

// TestGoAgreesOnWhatItSkips asks the go command, on whatever this test runs.
func TestGoAgreesOnWhatItSkips(t *testing.T) {
	for name, reason := range fileNames {
		name = name[:len(name)-len(".proto")] + ".pb.go"
		for _, goos := range []string{"plan9", "openbsd"} {
			pkg := t.TempDir()
			require.NoError(t, os.WriteFile(filepath.Join(pkg, "go.mod"), []byte("module example.com/x\n"), 0o600))
			require.NoError(t, os.WriteFile(filepath.Join(pkg, name), []byte("package p\n"), 0o600))
			cmd := exec.CommandContext(t.Context(), "go", "list", "-f", "{{.GoFiles}}", ".")
			cmd.Dir, cmd.Env = pkg, append(os.Environ(), "GOOS="+goos, "GOARCH=mips", "GOFLAGS=-mod=mod", "GOWORK=off")
			if goos == "openbsd" {
				cmd.Env = append(cmd.Env, "GOARCH=ppc64")
			}
			out, err := cmd.CombinedOutput()
			if reason != "" {
				require.Error(t, err, "%s: %s", name, out)
				continue
			}
			require.NoError(t, err, "%s: %s", name, out)
			assert.Contains(t, string(out), name)
		}
	}
}

// A file without services is skipped all the same: the messages that it declares are missing.
func TestMessagesThatGoSkipsAreRefused(t *testing.T) {
	files := schema("import \"deep.proto\";\nservice S {\n  rpc Do(M) returns (M);\n}")
	files["deep.proto"] = "syntax = \"proto3\"; import \"acts_windows.proto\"; option go_package = \"example.com/d\"; message D { A a = 1; }"
	files["acts_windows.proto"] = "syntax = \"proto3\"; option go_package = \"example.com/a\"; message A {}"
	reason := fileNames["nodes_windows.proto"]
	reason = "Go builds acts_windows.pb.go" + reason[len("Go builds nodes_windows.pb.go"):]
	assert.Equal(t, "acts_windows.proto:1:1: "+reason,
		generate(t, request(t, files, "", "x.proto", "deep.proto", "acts_windows.proto")).GetError())

	// Where another run made its code, the error is that of the file that uses its messages.
	files = schema("import \"acts_windows.proto\";\nservice S {\n  rpc Do(A) returns (M);\n}")
	files["acts_windows.proto"] = "syntax = \"proto3\"; option go_package = \"example.com/a\"; message A {}"
	assert.Equal(t, "x.proto:4:3: A can't be used, for in acts_windows.proto "+reason,
		generate(t, request(t, files, "", "x.proto")).GetError())

	// Files that no service reaches are none of this plugin's business.
	files = schema("service S {}")
	files["acts_windows.proto"] = "syntax = \"proto3\"; option go_package = \"example.com/a\"; message A {}"
	assert.Empty(t, generate(t, request(t, files, "", "x.proto", "acts_windows.proto")).GetError())
}
