// Package rundir is what RayLink keeps in the file system of a machine, and the order that
// processes keep there among each other.
//
// There are two kinds of directory:
//
//   - A run directory ([Run]) is where one run keeps its logs, models, variables and mapped files.
//     The driver makes it, under the
//     data directory ([DataDir]), and the run's hosts open it. It stays when the run is over, but for its mapped files, which
//     [SweepRuns] removes if the run couldn't.
//   - A host directory ([Host]) is private to one host process: its Unix socket, its nonce, its
//     scratch files. It is short-lived,
//     has a short path ([RuntimeDir]), and is gone when its process is: [Host.Close] or, if the process was killed, any other
//     process's [SweepHosts] removes it.
//
// Beside them stand a file lock that the kernel releases when its holder dies ([AcquireLock]), and
// the identity of a machine ([Machine]).
//
// What the package promises:
//
//   - Directories and files belong to the user alone (0700, 0600). A host directory is never made
//     in a place that others could
//     exchange for another: such a place is refused by an error.
//   - A sweep removes what dead processes left and nothing else, however many processes make, close
//     and sweep at once. Whether a
//     process lives is told by a lock that the kernel holds for it, never by its id or by time.
//   - Nothing waits for another process, but AcquireLock, which can be cancelled.
package rundir

import (
	"crypto/rand"
	"encoding/base32"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Environment variables that decide where things are.
const (
	// DataEnv names the data directory.
	DataEnv = "RAYLINK_DATA"
	// RuntimeEnv names the directory that host directories are made in.
	RuntimeEnv = "RAYLINK_RUNTIME_DIR"
	// MachineEnv names the machine.
	MachineEnv = "RAYLINK_MACHINE"
)

// DataDir is where runs are kept: $RAYLINK_DATA, else $XDG_STATE_HOME/raylink, else
// ~/.local/state/raylink. It need not be there.
func DataDir() (string, error) {
	if dir := os.Getenv(DataEnv); dir != "" {
		dir, err := filepath.Abs(dir)
		if err != nil {
			return "", fmt.Errorf("rundir: %s: %w", DataEnv, err)
		}
		return dir, nil
	}
	// The specification says that a relative path is to be ignored.
	if dir := os.Getenv("XDG_STATE_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "raylink"), nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", fmt.Errorf("rundir: there is no home directory to keep data in, set %s: %w", DataEnv, err)
	}
	return filepath.Join(home, ".local", "state", "raylink"), nil
}

// Run is a run's directory, as a process that takes part in the run holds it.
type Run struct {
	path string
	lock dirLock
}

// The folders of a run directory.
const (
	logsFolder      = "logs"
	modelsFolder    = "models"
	variablesFolder = "variables"
	mappedFolder    = "mapped"
)

const (
	runsFolder = "runs"
	latestLink = "latest"
	// runTime begins a run's name. The fraction orders the runs of one second.
	runTime = "20060102T150405.000000Z"
)

// NewRun makes a run's directory, <data>/runs/<UTC time>-<id>, and lets <data>/runs/latest point to
// it. An empty data means [DataDir].
func NewRun(data string) (*Run, error) {
	run, err := newRun(data)
	if err != nil {
		return nil, fmt.Errorf("rundir: making a run directory: %w", err)
	}
	return run, nil
}

func newRun(data string) (*Run, error) {
	if data == "" {
		var err error
		if data, err = DataDir(); err != nil {
			return nil, err
		}
	}
	runs, err := filepath.Abs(filepath.Join(data, runsFolder))
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(runs, privateDir); err != nil {
		return nil, err
	}
	if err := checkOurs(runs); err != nil {
		return nil, err
	}
	now := time.Now().UTC()
	path, lock, err := birth(runs, func() string { return now.Format(runTime) + "-" + shortID() }, shared, fillRun)
	if err != nil {
		return nil, err
	}
	run := &Run{path: path, lock: lock}
	if err := run.makeLatest(); err != nil {
		return nil, errors.Join(err, run.Close())
	}
	return run, nil
}

func fillRun(path string) error {
	for _, folder := range []string{logsFolder, modelsFolder, variablesFolder, mappedFolder} {
		if err := os.Mkdir(filepath.Join(path, folder), privateDir); err != nil {
			return err
		}
	}
	return nil
}

// makeLatest lets `latest` point to the run. The link is made within the run's directory and moved,
// so that there is a latest at any time, and one that is left behind is in nobody's way.
func (r *Run) makeLatest() error {
	link := filepath.Join(r.path, "."+latestLink)
	if err := os.Symlink(filepath.Base(r.path), link); err != nil {
		return err
	}
	return os.Rename(link, filepath.Join(filepath.Dir(r.path), latestLink))
}

// OpenRun opens the directory of a run that another process made and that is not over.
func OpenRun(path string) (*Run, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("rundir: opening a run directory: %w", err)
	}
	lock, err := useDir(path, shared)
	switch {
	case errors.Is(err, ErrLocked):
		return nil, fmt.Errorf("rundir: the run in %s is over, and is being swept up: %w", path, err)
	case err != nil:
		return nil, fmt.Errorf("rundir: opening a run directory: %w", err)
	}
	for _, folder := range []string{logsFolder, modelsFolder, variablesFolder, mappedFolder} {
		if info, err := os.Stat(filepath.Join(path, folder)); err != nil || !info.IsDir() {
			return nil, errors.Join(fmt.Errorf("rundir: %s is not a run directory: it has no folder %q", path, folder), lock.release())
		}
	}
	return &Run{path: path, lock: lock}, nil
}

// Path is the directory, absolute.
func (r *Run) Path() string { return r.path }

// ID is the run's name.
func (r *Run) ID() string { return filepath.Base(r.path) }

// Models is the folder for what was learned.
func (r *Run) Models() string { return filepath.Join(r.path, modelsFolder) }

// Variables is the folder for the run's configuration and variables.
func (r *Run) Variables() string { return filepath.Join(r.path, variablesFolder) }

// Mapped is the folder for files that processes map. They don't outlive the run: [SweepRuns].
func (r *Run) Mapped() string { return filepath.Join(r.path, mappedFolder) }

// Logs is the folder for what the run's processes print.
func (r *Run) Logs() string { return filepath.Join(r.path, logsFolder) }

// Log is the file for what the node at path prints, logs/<path>.log. The folder that it is in is
// made.
func (r *Run) Log(path string) (string, error) {
	if local, err := filepath.Localize(path); err != nil || path == "." || strings.HasPrefix(filepath.Base(local), ".") {
		return "", fmt.Errorf("rundir: %q is not a node's path that a log could be named for", path)
	}
	file := filepath.Join(r.Logs(), path+".log")
	if err := os.MkdirAll(filepath.Dir(file), privateDir); err != nil {
		return "", fmt.Errorf("rundir: making the folder for the log of %s: %w", path, err)
	}
	return file, nil
}

// Close lets go of the directory, which stays. When all processes have, or have died, the run is
// over.
func (r *Run) Close() error { return r.lock.release() }

// SweepRuns removes the mapped files of runs that are over, and directories whose making was cut
// short. An empty data means [DataDir]. It goes on when something can't be removed, and returns all
// errors.
func SweepRuns(data string) error {
	if data == "" {
		var err error
		if data, err = DataDir(); err != nil {
			return err
		}
	}
	return sweep(filepath.Join(data, runsFolder), isRunID, func(path string) error {
		return removeContents(filepath.Join(path, mappedFolder))
	})
}

// LatestRun is the path of the newest run's directory. An empty data means [DataDir].
func LatestRun(data string) (string, error) {
	if data == "" {
		var err error
		if data, err = DataDir(); err != nil {
			return "", err
		}
	}
	path, err := filepath.EvalSymlinks(filepath.Join(data, runsFolder, latestLink))
	if err != nil {
		return "", fmt.Errorf("rundir: finding the latest run: %w", err)
	}
	return path, nil
}

// shortID is eight random characters. Their 40 bits tell the few directories of a machine apart;
// whoever makes one finds out if not.
func shortID() string {
	var random [5]byte
	_, _ = rand.Read(random[:]) // never fails
	return strings.ToLower(base32.StdEncoding.EncodeToString(random[:]))
}

func isRunID(name string) bool {
	_, ok := runBegan(name)
	return ok
}

// runBegan parses the time in a run's name.
func runBegan(name string) (time.Time, bool) {
	began, id, _ := strings.Cut(name, "-")
	// Parse accepts a fraction after the seconds; earlier versions made names without one.
	t, err := time.Parse("20060102T150405Z", began)
	return t, err == nil && isShortID(id)
}

func isShortID(name string) bool {
	return len(name) == 8 && strings.Trim(name, "abcdefghijklmnopqrstuvwxyz234567") == ""
}

// KeepMark is the file that keeps a run's directory from being pruned: `touch runs/<run>/keep`.
const KeepMark = "keep"

// PruneRuns removes the directories of runs that are over, except for the newest and those that are
// marked with [KeepMark]. One that a process uses is never removed, however old. An empty data
// means [DataDir]. It goes on when something can't be removed, and returns all errors.
func PruneRuns(data string, newest int) error {
	if data == "" {
		var err error
		if data, err = DataDir(); err != nil {
			return err
		}
	}
	runs := filepath.Join(data, runsFolder)
	entries, err := os.ReadDir(runs)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	errs := []error{err}
	type run struct {
		name  string
		began time.Time
	}
	var old []run
	for _, entry := range entries {
		if began, ok := runBegan(entry.Name()); ok && entry.IsDir() {
			old = append(old, run{entry.Name(), began})
		}
	}
	// By time, not by name: a name with a fraction sorts before one without it. Entries come sorted
	// by name, which decides between equal times.
	slices.SortStableFunc(old, func(a, b run) int { return a.began.Compare(b.began) })
	for _, run := range old[:max(0, len(old)-newest)] {
		path := filepath.Join(runs, run.name)
		if _, err := os.Lstat(filepath.Join(path, KeepMark)); !errors.Is(err, fs.ErrNotExist) {
			continue
		}
		errs = append(errs, sweepOne(path, os.RemoveAll))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("rundir: pruning the runs in %s: %w", runs, err)
	}
	return nil
}
