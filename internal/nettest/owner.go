package nettest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/raylink/raylink/internal/proctest"
)

// prefix begins the names of directories and namespaces. It is followed by the id and the start of
// the process that has made them, and by what the process chooses.
const prefix = "rlnet-"

// owner is the process that has made a network. A process that has got the same id later started at
// another time.
type owner struct {
	pid int
	// start is in ticks of the clock since boot, as in /proc/<pid>/stat.
	start uint64
}

// ownPrefix begins the names of what this process makes.
func ownPrefix() (string, error) {
	start, err := startOf(os.Getpid())
	if err != nil {
		return "", fmt.Errorf("nettest: finding out when this process started: %w", err)
	}
	return owner{pid: os.Getpid(), start: start}.String(), nil
}

// String returns the beginning of names.
func (o owner) String() string { return fmt.Sprintf("%s%d-%d-", prefix, o.pid, o.start) }

// ownerOf returns the owner of what has a name. It returns false for a name that this package has
// not made.
func ownerOf(name string) (owner, bool) {
	pid, rest, _ := strings.Cut(strings.TrimPrefix(name, prefix), "-")
	start, _, _ := strings.Cut(rest, "-")
	var o owner
	var err [2]error
	o.pid, err[0] = strconv.Atoi(pid)
	o.start, err[1] = strconv.ParseUint(start, 10, 64)
	// The comparison refuses all but the form that String writes.
	if errors.Join(err[:]...) != nil || o.pid <= 0 || !strings.HasPrefix(name, o.String()) {
		return owner{}, false
	}
	return o, true
}

// isAlive reports whether the process has not ended.
func (o owner) isAlive() bool {
	start, err := startOf(o.pid)
	return err == nil && start == o.start
}

// errZombie is the error for a process that has ended, and whose parent has not waited for it.
var errZombie = errors.New("the process has ended")

// startOf returns when a process started, as /proc/<pid>/stat has it (see proc(5)).
func startOf(pid int) (uint64, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	return parseStart(string(stat))
}

// parseStart finds the start of a process in its line: the 22nd field. The second is its name, in
// parentheses, which may contain anything; the third its state.
func parseStart(stat string) (uint64, error) {
	const state, start = 3, 22
	fields := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
	if len(fields) <= start-state {
		return 0, fmt.Errorf("%.200q is no line of /proc/<pid>/stat", stat)
	}
	if fields[0] == "Z" || fields[0] == "X" {
		return 0, errZombie
	}
	return strconv.ParseUint(fields[start-state], 10, 64)
}

// sweep removes what networks of dead processes have left: processes, namespaces with their
// devices, directories. Other processes may do so at the same time.
func sweep() error {
	var errs []error
	directories, err := filepath.Glob(filepath.Join("/tmp", prefix+"*"))
	errs = append(errs, err)
	for _, directory := range directories {
		if isAbandoned(directory) {
			proctest.KillLeft(directory)
			errs = append(errs, os.RemoveAll(directory))
		}
	}
	mounted, err := filepath.Glob(filepath.Join(namespaces, prefix+"*"))
	errs = append(errs, err)
	for _, namespace := range mounted {
		if isAbandoned(namespace) {
			errs = append(errs, removeNamespace(filepath.Base(namespace)))
		}
	}
	return errors.Join(errs...)
}

// isAbandoned reports whether a file was made by a process that has ended.
func isAbandoned(file string) bool {
	o, ok := ownerOf(filepath.Base(file))
	return ok && !o.isAlive()
}
