// Package rundir manages RayLink's files and directories on a machine, and the locks by which
// processes share them.
//
// There are two kinds of directory:
//
//   - A run directory ([Run]) contains one run's logs, models, variables and mapped files. The
//     driver creates it in the data directory ([DataDir]), and the run's hosts open it. It stays
//     when the run is over, except for its mapped files, which [SweepRuns] removes if the run could
//     not.
//   - A host directory ([Host]) is private to one host process: its Unix socket, its nonce, its
//     scratch files. It has a short path ([RuntimeDir]) and the lifetime of its process:
//     [Host.Close] removes it or, if the process was killed, [SweepHosts] in any other process.
//
// In addition the package has a file lock that the kernel releases when its holder dies
// ([AcquireLock]), and the identity of a machine ([Machine]).
//
// What the package promises:
//
//   - Directories and files are accessible to their user only (0700, 0600). A host directory is
//     never created in a place where other users could replace it: such a place is refused with an
//     error.
//   - A sweep removes what dead processes have left and nothing else, however many processes
//     create, close and sweep at once. Whether a process lives is determined by a lock that the
//     kernel holds for it, never by its id or by time.
//   - Nothing waits for another process except AcquireLock, which can be canceled.
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

// Environment variables that determine where things are.
const (
	// DataEnv is the data directory.
	DataEnv = "RAYLINK_DATA"
	// RuntimeEnv is the directory in which host directories are created.
	RuntimeEnv = "RAYLINK_RUNTIME_DIR"
	// MachineEnv is the identity of the machine.
	MachineEnv = "RAYLINK_MACHINE"
)

// DataDir returns the data directory, which contains the runs: $RAYLINK_DATA, else
// $XDG_STATE_HOME/raylink, else ~/.local/state/raylink. It need not exist.
func DataDir() (string, error) {
	if dir := os.Getenv(DataEnv); dir != "" {
		dir, err := filepath.Abs(dir)
		if err != nil {
			return "", fmt.Errorf("rundir: %s: %w", DataEnv, err)
		}
		return dir, nil
	}
	// The specification says that a relative path must be ignored.
	if dir := os.Getenv("XDG_STATE_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "raylink"), nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", fmt.Errorf("rundir: there is no home directory to keep data in, set %s: %w", DataEnv, err)
	}
	return filepath.Join(home, ".local", "state", "raylink"), nil
}

// Run is an open run directory. The run is not over while any process has it open.
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
	// runTime is the format of the time in a run's name. The fraction orders the runs of one
	// second.
	runTime = "20060102T150405.000000Z"
)

// NewRun creates a run directory, <data>/runs/<UTC time>-<id>, and makes <data>/runs/latest point
// to it. An empty data means [DataDir]. The caller must Close it.
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

// makeLatest makes `latest` point to the run. The link is created in the run's directory and
// renamed, so that `latest` exists at any time, and a link that is left behind does no harm.
func (r *Run) makeLatest() error {
	link := filepath.Join(r.path, "."+latestLink)
	if err := os.Symlink(filepath.Base(r.path), link); err != nil {
		return err
	}
	return os.Rename(link, filepath.Join(filepath.Dir(r.path), latestLink))
}

// OpenRun opens the directory of a run that another process has created and that is not over. The
// caller must Close it.
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

// Path is the absolute path of the directory.
func (r *Run) Path() string { return r.path }

// Data is the data directory that has the run: see [NewRun].
func (r *Run) Data() string { return filepath.Dir(filepath.Dir(r.path)) }

// ID is the run's name.
func (r *Run) ID() string { return filepath.Base(r.path) }

// Models is the folder for trained models.
func (r *Run) Models() string { return filepath.Join(r.path, modelsFolder) }

// Variables is the folder for the run's configuration and variables.
func (r *Run) Variables() string { return filepath.Join(r.path, variablesFolder) }

// Mapped is the folder for files that processes map. They are removed when the run is over, see
// [SweepRuns].
func (r *Run) Mapped() string { return filepath.Join(r.path, mappedFolder) }

// Logs is the folder for the output of the run's processes.
func (r *Run) Logs() string { return filepath.Join(r.path, logsFolder) }

// Log returns the path of the log of the node at path, logs/<path>.log, and creates its folder.
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

// Close closes the directory, which stays. When all processes have closed it or died, the run is
// over.
func (r *Run) Close() error { return r.lock.release() }

// SweepRuns removes the mapped files of runs that are over, and directories whose creation was
// interrupted. An empty data means [DataDir]. It continues after errors, and returns all of them.
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

// LatestRun returns the directory of the newest run. An empty data means [DataDir].
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

// shortID returns eight random characters. Their 40 bits suffice for the few directories of a
// machine; creation detects a collision.
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

// KeepMark is the file that protects a run's directory from pruning: `touch runs/<run>/keep`.
const KeepMark = "keep"

// PruneRuns removes the directories of runs that are over, except for the newest ones and those
// marked with [KeepMark]. A directory that a process has open is never removed, however old it is.
// An empty data means [DataDir]. It continues after errors, and returns all of them.
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
	// By time, not by name: a name with a fraction sorts before one without it. Entries are sorted
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
