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

// ErrNotPrivate says that a directory can't be used because others than the user could change what
// is in it, or it itself.
var ErrNotPrivate = errors.New("not private")

// makePrivate makes the directory if it isn't there. It refuses one that others can use, or that
// others could exchange for another: in /tmp, anybody may have been there first.
func makePrivate(dir string) error {
	if err := checkParent(filepath.Dir(dir)); err != nil {
		return err
	}
	if err := os.Mkdir(dir, privateDir); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return checkPrivate(dir)
}

// checkPrivate refuses what isn't a directory of the user's that nobody else can use. A symbolic
// link isn't one.
func checkPrivate(dir string) error {
	info, err := os.Lstat(dir) //nolint:gosec // only looked at: the path may be from the wire, see Proves
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
		// What else is in it may have to be open to others: only a directory for RayLink alone is
		// to be closed to them.
		if entries, err := os.ReadDir(dir); err != nil || len(entries) > 0 {
			return fmt.Errorf("%s is %w: its mode is %#o, and it has files in it; %s", dir, ErrNotPrivate, mode, elsewhere(dir))
		}
		return fmt.Errorf("%s is %w: its mode is %#o; run: chmod 700 %s", dir, ErrNotPrivate, mode, dir)
	}
	return nil
}

// elsewhere says what to do where a directory can't be made private.
func elsewhere(dir string) string {
	if checkParent(dir) != nil {
		return "use one that only you can use (" + RuntimeEnv + ")"
	}
	return "use one of your own, such as " + filepath.Join(dir, "raylink-"+strconv.Itoa(os.Geteuid())) + " (" + RuntimeEnv + ")"
}

// checkOurs refuses a directory that another user owns or can write to. Letting others read it is
// the user's own affair.
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

// checkParent refuses a directory in which others could rename ours. In one with the sticky bit, as
// /tmp has it, they can't.
func checkParent(dir string) error {
	info, err := os.Stat(dir) //nolint:gosec // the user's own setting, and only looked at
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

// removeContents removes all that is in the directory, but not itself.
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
