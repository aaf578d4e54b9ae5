package rundir

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"
)

// Names in a host directory.
const (
	socketFile    = "socket"
	nonceFile     = "nonce"
	scratchFolder = "scratch"
)

// locksFolder is where [LockPath] puts locks; its name is no short id, so that no sweep takes it for a host's.
const locksFolder = "locks"

// maxSocketPath is the longest path that a Unix socket can have on every system: macOS has room for 104 bytes with the zero at their
// end, Linux for 108.
const maxSocketPath = 103

// RuntimeDir is where host directories are made: $RAYLINK_RUNTIME_DIR, else $XDG_RUNTIME_DIR/raylink if that is usable, else
// /tmp/raylink-<user id>. It need not be there.
func RuntimeDir() string {
	if dir := os.Getenv(RuntimeEnv); dir != "" {
		return dir
	}
	// Set, but of another user (sudo), or not there (a container that got the variable only): both are common.
	if xdg := os.Getenv("XDG_RUNTIME_DIR"); filepath.IsAbs(xdg) && checkPrivate(xdg) == nil {
		if dir := filepath.Join(xdg, "raylink"); fits(dir) {
			return dir
		}
	}
	return filepath.Join("/tmp", "raylink-"+strconv.Itoa(os.Geteuid()))
}

// fits says whether sockets in host directories in dir have paths that are short enough.
func fits(dir string) bool {
	return len(filepath.Join(dir, "12345678", socketFile)) <= maxSocketPath
}

// Host is the directory of this process as a host.
type Host struct {
	path  string
	nonce string
	lock  dirLock

	closing sync.Once
	err     error // of closing
}

// NewHost makes a directory for this process in runtimeDir; empty means [RuntimeDir]. Others see that this process is alive by
// it until it is closed.
func NewHost(runtimeDir string) (*Host, error) {
	host, err := newHost(runtimeDir)
	if err != nil {
		return nil, fmt.Errorf("rundir: making a host's directory: %w", err)
	}
	return host, nil
}

func newHost(runtimeDir string) (*Host, error) {
	runtimeDir, err := openRuntimeDir(runtimeDir)
	if err != nil {
		return nil, err
	}
	if !fits(runtimeDir) {
		return nil, fmt.Errorf("the path %s is too long for a Unix socket in it (%d bytes at most in all); set %s to a short one",
			runtimeDir, maxSocketPath, RuntimeEnv)
	}
	var random [32]byte
	_, _ = rand.Read(random[:]) // never fails
	nonce := hex.EncodeToString(random[:])
	path, lock, err := birth(runtimeDir, shortID, exclusive, func(path string) error {
		if err := os.Mkdir(filepath.Join(path, scratchFolder), privateDir); err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(path, nonceFile), []byte(nonce), privateFile)
	})
	if err != nil {
		return nil, err
	}
	return &Host{path: path, nonce: nonce, lock: lock}, nil
}

// openRuntimeDir makes the directory, if it isn't there, and checks that it can be trusted.
func openRuntimeDir(dir string) (string, error) {
	if dir == "" {
		dir = RuntimeDir()
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	return dir, makePrivate(dir)
}

// Path is the directory, absolute.
func (h *Host) Path() string { return h.path }

// Socket is the path for the host's Unix socket. It is short enough to be one's address.
func (h *Host) Socket() string { return filepath.Join(h.path, socketFile) }

// Scratch is a folder for whatever the process needs while it lives.
func (h *Host) Scratch() string { return filepath.Join(h.path, scratchFolder) }

// Nonce is the random text that is in the directory's nonce file. A process that is told it, and finds it there with
// [Proves], shares this file system.
func (h *Host) Nonce() string { return h.nonce }

// Close removes the directory. What the process still has open stays usable.
func (h *Host) Close() error {
	h.closing.Do(func() { // the descriptor's number may soon be another file's
		if h.err = errors.Join(os.RemoveAll(h.path), h.lock.release()); h.err != nil {
			h.err = fmt.Errorf("rundir: removing a host's directory: %w", h.err)
		}
	})
	return h.err
}

// SweepHosts removes the directories of dead hosts from runtimeDir; empty means [RuntimeDir]. It goes on when something can't be
// removed, and returns all errors.
func SweepHosts(runtimeDir string) error {
	dir, err := openRuntimeDir(runtimeDir)
	if err != nil {
		return fmt.Errorf("rundir: sweeping up after dead hosts: %w", err)
	}
	return sweep(dir, isShortID, os.RemoveAll)
}

// LockPath is the path of a lock, for [AcquireLock], that all of the user's processes on this machine that have the same
// runtimeDir mean by the name; empty means [RuntimeDir].
func LockPath(runtimeDir, name string) (string, error) {
	if filepath.Base(name) != name || name == "." || name == ".." {
		return "", fmt.Errorf("rundir: %q is no name for a lock: it must be a single path element", name)
	}
	dir, err := openRuntimeDir(runtimeDir)
	if err == nil {
		dir = filepath.Join(dir, locksFolder)
		err = makePrivate(dir)
	}
	if err != nil {
		return "", fmt.Errorf("rundir: making the folder for locks: %w", err)
	}
	return filepath.Join(dir, name), nil
}
