package launch

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"
)

// A process's arguments can be read by every user of the machine. Those of a launched process are
// therefore only a title, `program: path of the node`. The program's own arguments, which may
// contain secrets, are passed by a pipe, and are in os.Args again before the program's main begins.

// argsMarker is the environment variable with the file descriptor from which to read the arguments.
const argsMarker = "RAYLINK_HOST_ARGS"

// title is the name of a launched process in lists of processes.
func title(args []string, name string) string { return filepath.Base(args[0]) + ": " + name }

// passArguments makes the pipe for the arguments. The caller must call the returned function after
// it has started the process, or failed to. It writes them in the background, because what exceeds
// the pipe's buffer waits for the process to read.
func passArguments(args []string) (*os.File, func(), error) {
	text, err := json.Marshal(args)
	if err != nil {
		return nil, nil, fmt.Errorf("encoding the arguments: %w", err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, nil, fmt.Errorf("making a pipe: %w", err)
	}
	return r, func() {
		go func() {
			_, _ = w.Write(text) // a process that has died reads nothing
			_ = w.Close()
		}()
	}, nil
}

// takeArguments restores the program's arguments in a launched process, and names the process after
// its node.
func takeArguments() {
	value, ok := os.LookupEnv(argsMarker)
	if !ok {
		return
	}
	_ = os.Unsetenv(argsMarker) // the variable exists
	fd, err := pipeFD(value)
	if err != nil {
		return // without its arguments, the program reports what is missing
	}
	pipe := os.NewFile(uintptr(fd), "arguments")
	text, err := io.ReadAll(pipe)
	_ = pipe.Close() // only read
	var args []string
	if err != nil || json.Unmarshal(text, &args) != nil || len(args) == 0 {
		return
	}
	_, name, _ := strings.Cut(os.Args[0], ": ")
	os.Args = args
	nameProcess(path.Base(name))
}

// childEnvironment is this process's present environment with the markers and the mark of the new
// process, and without the token, which is in the payload.
func childEnvironment(fds, args, mark string) []string {
	var env []string
	for _, entry := range os.Environ() {
		switch name, _, _ := strings.Cut(entry, "="); name {
		case marker, argsMarker, markVariable, "RAYLINK_TOKEN", "RAYLINK_TOKEN_FILE":
		default:
			env = append(env, entry)
		}
	}
	return append(env, marker+"="+fds, argsMarker+"="+args, markVariable+"="+mark)
}
