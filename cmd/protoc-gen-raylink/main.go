// Protoc-gen-raylink is a plugin of buf and protoc that turns services into nodes, and messages
// into rows of columns: see package generator for what it writes.
//
// Called by buf or protoc it reads a request on standard input and writes its response to standard
// output. People call it with --export, --version or --help.
package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/pluginpb"

	"github.com/raylink/raylink/cmd/protoc-gen-raylink/generator"
	schemas "github.com/raylink/raylink/proto"
)

const usage = `protoc-gen-raylink turns the services of .proto files into RayLink nodes, and their rows into columns, in Go. Buf and protoc run it:

    # buf.gen.yaml
    version: v2
    plugins:
      - local: protoc-gen-go
        out: gen
        opt: paths=source_relative
      - local: protoc-gen-raylink
        out: gen
        opt: paths=source_relative

Give it the same options as protoc-gen-go: paths=import or paths=source_relative, module=PREFIX, M<file>=<import path>,
annotate_code.

Run by hand it takes one of these:

    --export DIR   write the schemas that yours can import (raylink/options/v1/options.proto, ...) below DIR; with buf, make DIR a
                   module of its own in buf.yaml, and generate from the module of your schemas alone
    --version      print the version
    --help         print this
`

func main() {
	var err error
	if len(os.Args) == 1 {
		err = respond(os.Stdin, os.Stdout)
	} else {
		err = run(os.Args[1:], os.Stdout)
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "protoc-gen-raylink: %v\n", err)
		os.Exit(1)
	}
}

// respond reads a request of buf or protoc and writes the response, in which refusals are.
func respond(in io.Reader, out io.Writer) error {
	raw, err := io.ReadAll(in)
	if err != nil {
		return fmt.Errorf("read the request: %w", err)
	}
	request := &pluginpb.CodeGeneratorRequest{}
	if err := proto.Unmarshal(raw, request); err != nil {
		return fmt.Errorf("read the request, which buf or protoc writes to standard input: %w", err)
	}
	plugin, err := generator.Options().New(request)
	if err != nil {
		return err
	}
	response, err := proto.Marshal(generator.Respond(plugin))
	if err != nil {
		return fmt.Errorf("encode the response: %w", err)
	}
	if _, err := out.Write(response); err != nil {
		return fmt.Errorf("write the response: %w", err)
	}
	return nil
}

// run does what a person asked for on the command line.
func run(args []string, out io.Writer) error {
	switch name, value, hasValue := strings.Cut(args[0], "="); {
	case (name == "--help" || name == "-h") && len(args) == 1:
		_, err := io.WriteString(out, usage)
		return err
	case name == "--version" && len(args) == 1:
		_, err := fmt.Fprintln(out, "protoc-gen-raylink", version())
		return err
	case name == "--export" && hasValue && len(args) == 1:
		return export(value, out)
	case name == "--export" && !hasValue && len(args) == 2:
		return export(args[1], out)
	case name == "--export":
		return errors.New("--export takes one directory")
	}
	return fmt.Errorf("unknown arguments %q; see --help", args)
}

// version is that of the module this program was built from.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok || info.Main.Version == "" {
		return "(devel)"
	}
	return info.Main.Version
}

// export writes the schemas that users import below dir, and says which files it wrote.
func export(dir string, out io.Writer) error {
	if dir == "" {
		return errors.New("--export takes one directory")
	}
	return fs.WalkDir(schemas.Schemas, ".", func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		content, err := fs.ReadFile(schemas.Schemas, path)
		if err != nil {
			return err
		}
		target := filepath.Join(dir, filepath.FromSlash(path))
		if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil { //nolint:gosec // schemas are there to be read
			return fmt.Errorf("export: %w", err)
		}
		if err := os.WriteFile(target, content, 0o644); err != nil { //nolint:gosec // schemas are there to be read
			return fmt.Errorf("export: %w", err)
		}
		_, err = fmt.Fprintln(out, target)
		return err
	})
}
