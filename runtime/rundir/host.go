package rundir

import (
	"cmp"
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

// locksFolder contains the locks of [LockPath]. Its name is not a short id, so sweeps do not
// mistake it for a host directory.
const locksFolder = "locks"

// maxSocketPath is the longest path that a Unix socket can have on every system: macOS has room for
// 104 bytes including a final zero, Linux for 108.
const maxSocketPath = 103

// RuntimeDir returns where host directories are created: $RAYLINK_RUNTIME_DIR, else
// $XDG_RUNTIME_DIR/raylink if that is usable, else /tmp/raylink-<user id>, or, if another user has
// created that, the first of /tmp/raylink-<user id>-1 and so on that no other user has. A directory
// that a variable names is ignored if it belongs to another user, as it may under sudo. The
// directory need not exist.
func RuntimeDir() string {
	if dir := os.Getenv(RuntimeEnv); dir != "" && !isForeign(dir) {
		return dir
	}
	if dir := underXDG(os.Getenv("XDG_RUNTIME_DIR")); dir != "" {
		return dir
	}
	return firstUsable(sharedDirs())
}

// isForeign reports whether a directory belongs to another user.
func isForeign(dir string) bool {
	info, err := os.Stat(dir) //nolint:gosec // the user's own setting, and only inspected
	return err == nil && ownerOf(info) != os.Geteuid()
}

// runtimeDirs are the places where the user's other processes, with other environments, may have
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

// underXDG returns the runtime directory in the one that XDG_RUNTIME_DIR names, or "" if that is
// not usable: it may belong to another user (sudo), or not exist (a container with only the
// variable).
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

// sharedDirs are the runtime directories that the user may have in /tmp, in order of preference.
func sharedDirs() []string {
	base := filepath.Join("/tmp", "raylink-"+strconv.Itoa(os.Geteuid()))
	dirs := []string{base}
	for i := 1; i < alternatives; i++ {
		dirs = append(dirs, base+"-"+strconv.Itoa(i))
	}
	return dirs
}

// firstUsable returns the first directory that is the user's, else the first that does not exist.
// Another user's files in these places are skipped, so that they cannot prevent a start. If all
// places are taken it returns the first, which is then refused with the reason.
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

// fits reports whether the paths of sockets in host directories in dir are short enough.
func fits(dir string) bool {
	return len(filepath.Join(dir, "12345678", socketFile)) <= maxSocketPath
}

// Host is the host directory of this process.
type Host struct {
	path  string
	nonce string
	lock  dirLock

	closing sync.Once
	err     error // the result of Close
}

// NewHost creates a host directory for this process in runtimeDir; empty means [RuntimeDir]. Until
// it is closed, it shows other processes that this one is alive.
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

// openRuntimeDir creates the directory if it does not exist, and checks that it is private.
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
		// Another user may have created it since it was checked.
		if err = makePrivate(dir); err == nil || !errors.Is(err, ErrNotPrivate) || try == alternatives {
			return dir, err
		}
	}
}

// Path is the absolute path of the directory.
func (h *Host) Path() string { return h.path }

// Socket is the path for the host's Unix socket, short enough for a socket address.
func (h *Host) Socket() string { return filepath.Join(h.path, socketFile) }

// Scratch is a folder for temporary files of the process. It is removed with the directory.
func (h *Host) Scratch() string { return filepath.Join(h.path, scratchFolder) }

// Nonce is the random text in the directory's nonce file. A process that gets it from a peer, and
// verifies it with [Proves], shares a file system with that peer.
func (h *Host) Nonce() string { return h.nonce }

// Close removes the directory. Files that the process has open remain usable. Further calls return
// the same result.
func (h *Host) Close() error {
	h.closing.Do(func() { // only once: the number of the descriptor may soon be that of another file
		if h.err = errors.Join(os.RemoveAll(h.path), h.lock.release()); h.err != nil {
			h.err = fmt.Errorf("rundir: removing a host's directory: %w", h.err)
		}
	})
	return h.err
}

// SweepHosts removes the directories of dead hosts from runtimeDir; empty means [RuntimeDir]. It
// continues after errors, and returns all of them. A directory that is not there stays so: a run
// may have removed it, of which this process is the last.
func SweepHosts(runtimeDir string) error {
	dir := cmp.Or(runtimeDir, RuntimeDir())
	_, err := os.Lstat(dir)
	if errors.Is(err, fs.ErrNotExist) {
		if err = checkParent(filepath.Dir(dir)); err == nil || errors.Is(err, fs.ErrNotExist) {
			return nil
		}
	} else {
		dir, err = openRuntimeDir(runtimeDir)
	}
	if err != nil {
		return fmt.Errorf("rundir: sweeping up after dead hosts: %w", err)
	}
	return sweep(dir, isShortID, os.RemoveAll)
}

// LockPath returns the path of a lock, for [AcquireLock], that has the same name for all of the
// user's processes on this machine with the same runtimeDir; empty means [RuntimeDir].
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
