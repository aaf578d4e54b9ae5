package rundir

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
)

// Names in a host directory.
const (
	socketFile    = "socket"
	nonceFile     = "nonce"
	scratchFolder = "scratch"
)

// locksFolder is where [LockPath] puts locks; its name is no short id, so that no sweep takes it
// for a host's.
const locksFolder = "locks"

// maxSocketPath is the longest path that a Unix socket can have on every system: macOS has room for
// 104 bytes with the zero at their end, Linux for 108.
const maxSocketPath = 103

// RuntimeDir is where host directories are made: $RAYLINK_RUNTIME_DIR, else
// $XDG_RUNTIME_DIR/raylink if that is usable, else /tmp/raylink-<user id>, or, where another user
// has made that, the first of /tmp/raylink-<user id>-1 and so on that none has. What a variable
// names is passed over too where it belongs to another user, as it may under sudo. It need not be
// there.
func RuntimeDir() string {
	if dir := os.Getenv(RuntimeEnv); dir != "" && !isForeign(dir) {
		return dir
	}
	if dir := underXDG(os.Getenv("XDG_RUNTIME_DIR")); dir != "" {
		return dir
	}
	return firstUsable(sharedDirs())
}

// isForeign says whether a directory belongs to another user.
func isForeign(dir string) bool {
	info, err := os.Stat(dir) //nolint:gosec // the user's own setting, and only looked at
	return err == nil && ownerOf(info) != os.Geteuid()
}

// runtimeDirs are the places where the user's other processes, in other surroundings, may have
// their runtime directory.
func runtimeDirs() []string {
	dirs := []string{RuntimeDir()}
	if os.Getenv(RuntimeEnv) != "" {
		return dirs
	}
	others := append([]string{underXDG("/run/user/" + strconv.Itoa(os.Geteuid()))}, sharedDirs()...)
	for _, dir := range others {
		if dir != "" && !slices.Contains(dirs, dir) {
			dirs = append(dirs, dir)
		}
	}
	return dirs
}

// underXDG is the runtime directory below what XDG_RUNTIME_DIR names, or "" where that can't be
// used: it may be set, but of another user (sudo), or not there (a container that got the variable
// only).
func underXDG(xdg string) string {
	if !filepath.IsAbs(xdg) || checkPrivate(xdg) != nil {
		return ""
	}
	if dir := filepath.Join(xdg, "raylink"); fits(dir) {
		return dir
	}
	return ""
}

// alternatives is how many directories in /tmp are tried.
const alternatives = 16

// sharedDirs are the runtime directories that the user may have in /tmp, in order.
func sharedDirs() []string {
	base := filepath.Join("/tmp", "raylink-"+strconv.Itoa(os.Geteuid()))
	dirs := []string{base}
	for i := 1; i < alternatives; i++ {
		dirs = append(dirs, base+"-"+strconv.Itoa(i))
	}
	return dirs
}

// firstUsable is the first that is the user's, else the first that isn't there. What somebody else
// has put in a place is passed over: it can keep nobody from starting. If that has happened to all,
// it is the first, which then is refused with the reason.
func firstUsable(dirs []string) string {
	free := ""
	for _, dir := range dirs {
		info, err := os.Lstat(dir)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			if free == "" {
				free = dir
			}
		case err == nil && info.IsDir() && ownerOf(info) == os.Geteuid():
			return dir
		}
	}
	if free == "" {
		return dirs[0]
	}
	return free
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

// NewHost makes a directory for this process in runtimeDir; empty means [RuntimeDir]. Others see
// that this process is alive by it until it is closed.
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
	if dir != "" {
		dir, err := filepath.Abs(dir)
		if err != nil {
			return "", err
		}
		return dir, makePrivate(dir)
	}
	for try := 0; ; try++ {
		dir, err := filepath.Abs(RuntimeDir())
		if err != nil {
			return "", err
		}
		// Another user may have taken the place since it was looked at.
		if err = makePrivate(dir); err == nil || !errors.Is(err, ErrNotPrivate) || try == alternatives {
			return dir, err
		}
	}
}

// Path is the directory, absolute.
func (h *Host) Path() string { return h.path }

// Socket is the path for the host's Unix socket. It is short enough to be one's address.
func (h *Host) Socket() string { return filepath.Join(h.path, socketFile) }

// Scratch is a folder for whatever the process needs while it lives.
func (h *Host) Scratch() string { return filepath.Join(h.path, scratchFolder) }

// Nonce is the random text that is in the directory's nonce file. A process that is told it, and
// finds it there with [Proves], shares this file system.
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

// SweepHosts removes the directories of dead hosts from runtimeDir; empty means [RuntimeDir]. It
// goes on when something can't be removed, and returns all errors.
func SweepHosts(runtimeDir string) error {
	dir, err := openRuntimeDir(runtimeDir)
	if err != nil {
		return fmt.Errorf("rundir: sweeping up after dead hosts: %w", err)
	}
	return sweep(dir, isShortID, os.RemoveAll)
}

// LockPath is the path of a lock, for [AcquireLock], that all of the user's processes on this
// machine that have the same runtimeDir mean by the name; empty means [RuntimeDir].
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
