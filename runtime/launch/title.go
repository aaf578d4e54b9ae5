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

// A process's arguments can be read by every user of the machine. So those of a launched one say
// what it is, `program: path of the node`, and nothing else; the program's own arguments, which may
// hold secrets, come by a pipe, and are in os.Args again before the program's main begins.

// argsMarker is the environment variable that names the file descriptor to read the arguments from.
const argsMarker = "RAYLINK_HOST_ARGS"

// title is what a launched process is called in lists of processes.
func title(args []string, name string) string { return filepath.Base(args[0]) + ": " + name }

// passArguments makes the pipe that the arguments go by. They are written by the function, which
// must be called when the process has been started or not: what a pipe does not hold waits for the
// process to read.
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

// takeArguments gives a launched process the arguments of its program, and the process the node's
// name.
func takeArguments() {
	value, ok := os.LookupEnv(argsMarker)
	if !ok {
		return
	}
	_ = os.Unsetenv(argsMarker) // it was there
	fd, err := pipeFD(value)
	if err != nil {
		return // without the arguments, the program says by itself what it misses
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
// process, and without the token: the payload has that.
func childEnvironment(fds, args, mark string) []string {
	var env []string
	for _, entry := range os.Environ() {
		if name, _, _ := strings.Cut(entry, "="); name != marker && name != argsMarker && name != markVariable && name != "RAYLINK_TOKEN" {
			env = append(env, entry)
		}
	}
	return append(env, marker+"="+fds, argsMarker+"="+args, markVariable+"="+mark)
}
