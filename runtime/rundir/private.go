package rundir

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
)

const (
	privateDir  = 0o700
	privateFile = 0o600
)

// ErrNotPrivate is the error for a directory that other users own, or whose contents they could
// read or change.
var ErrNotPrivate = errors.New("not private")

// makePrivate creates the directory if it does not exist. It refuses one that other users can
// access, or could replace: in /tmp, another user may have created it first.
func makePrivate(dir string) error {
	parent := filepath.Dir(dir)
	if err := os.MkdirAll(parent, privateDir); err != nil {
		return err
	}
	if err := checkParent(parent); err != nil {
		return err
	}
	if err := os.Mkdir(dir, privateDir); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return checkPrivate(dir)
}

// checkPrivate refuses everything but a directory that only this user can access. A symbolic link
// is refused too.
func checkPrivate(dir string) error {
	info, err := os.Lstat(dir) //nolint:gosec // only inspected: the path may be from the wire, see Proves
	if err != nil {
		return err
	}
	if !info.IsDir() {
		return fmt.Errorf("%s is %w: it is not a directory, but %s", dir, ErrNotPrivate, describe(info.Mode()))
	}
	if uid := ownerOf(info); uid != os.Geteuid() {
		return fmt.Errorf("%s is %w: it belongs to user %d, not to %d; %s", dir, ErrNotPrivate, uid, os.Geteuid(), elsewhere(dir))
	}
	if info.Mode()&fs.ModeSticky != 0 || info.Mode().Perm()&0o002 != 0 {
		return fmt.Errorf("%s is %w: it is a directory for all users (mode %#o); %s", dir, ErrNotPrivate, info.Mode().Perm(), elsewhere(dir))
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		// Other files in it may have to be accessible to others, so chmod is suggested only for an
		// empty directory.
		if entries, err := os.ReadDir(dir); err != nil || len(entries) > 0 {
			return fmt.Errorf("%s is %w: its mode is %#o, and it has files in it; %s", dir, ErrNotPrivate, mode, elsewhere(dir))
		}
		return fmt.Errorf("%s is %w: its mode is %#o; run: chmod 700 %s", dir, ErrNotPrivate, mode, dir)
	}
	return nil
}

// elsewhere suggests a directory to use instead.
func elsewhere(dir string) string {
	if checkParent(dir) != nil {
		return "use one that only you can use (" + RuntimeEnv + ")"
	}
	return "use one of your own, such as " + filepath.Join(dir, "raylink-"+strconv.Itoa(os.Geteuid())) + " (" + RuntimeEnv + ")"
}

// checkOurs refuses a directory that another user owns or can write to. Whether others can read it
// is the user's decision.
func checkOurs(dir string) error {
	info, err := os.Stat(dir)
	if err != nil {
		return err
	}
	if uid := ownerOf(info); uid != os.Geteuid() {
		return fmt.Errorf("%s is %w: it belongs to user %d, not to %d", dir, ErrNotPrivate, uid, os.Geteuid())
	}
	if mode := info.Mode().Perm(); mode&0o022 != 0 {
		return fmt.Errorf("%s is %w: its mode is %#o, so that others can change what is in it; run: chmod go-w %s",
			dir, ErrNotPrivate, mode, dir)
	}
	return nil
}

// checkParent refuses a directory in which other users could rename an entry. In one with the
// sticky bit, such as /tmp, they cannot.
func checkParent(dir string) error {
	info, err := os.Stat(dir) //nolint:gosec // the user's own setting, and only inspected
	if err != nil {
		return err
	}
	if uid := ownerOf(info); uid != os.Geteuid() && uid != 0 {
		return fmt.Errorf("%s is %w: it belongs to user %d", dir, ErrNotPrivate, uid)
	}
	if info.Mode().Perm()&0o022 != 0 && info.Mode()&fs.ModeSticky == 0 {
		return fmt.Errorf("%s is %w: others can rename what is in it (mode %#o without the sticky bit)",
			dir, ErrNotPrivate, info.Mode().Perm())
	}
	return nil
}

func ownerOf(info fs.FileInfo) int {
	if stat, ok := info.Sys().(*syscall.Stat_t); ok {
		return int(stat.Uid)
	}
	return -1
}

func describe(mode fs.FileMode) string {
	switch {
	case mode.Type() == fs.ModeSymlink:
		return "a symbolic link"
	case mode.IsRegular():
		return "a file"
	}
	return "something else (" + mode.Type().String() + ")"
}

// removeContents removes everything in the directory, but not the directory.
func removeContents(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	errs := []error{err}
	for _, entry := range entries {
		errs = append(errs, os.RemoveAll(filepath.Join(dir, entry.Name())))
	}
	return errors.Join(errs...)
}
