package pki

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// Permissions of what only the user may read, and the bits that let others in.
const (
	privateDir  = 0o700
	privateFile = 0o600
	others      = 0o077
)

// openPrivateDir makes a directory for the user alone, or verifies that it is one.
func openPrivateDir(dir string) error {
	if err := os.MkdirAll(dir, privateDir); err != nil {
		return fmt.Errorf("making the directory of the CA: %w", err)
	}
	info, err := os.Lstat(dir)
	if err != nil {
		return fmt.Errorf("examining the directory of the CA: %w", err)
	}
	if !info.IsDir() {
		return fmt.Errorf("the directory of the CA, %s, is not a directory (%s)", dir, info.Mode().Type())
	}
	return checkPrivate(dir, info, privateDir)
}

// checkPrivate refuses what another user owns, can read or can write.
func checkPrivate(path string, info fs.FileInfo, want fs.FileMode) error {
	if mode := info.Mode().Perm(); mode&others != 0 {
		return fmt.Errorf("%s can be accessed by other users (mode %#o), which may have read or changed it: "+
			"if they have not, run chmod %o %s", path, mode, want, path)
	}
	if stat, ok := info.Sys().(*syscall.Stat_t); ok && int(stat.Uid) != os.Geteuid() {
		return fmt.Errorf("%s belongs to the user with id %d, and this process runs as %d", path, stat.Uid, os.Geteuid())
	}
	return nil
}

// readPrivate returns the content of a regular file for the user alone, of at most limit bytes. The
// error is fs.ErrNotExist if there is none.
func readPrivate(path string, limit int) ([]byte, error) {
	file, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if errors.Is(err, syscall.ELOOP) {
		return nil, fmt.Errorf("%s is a symbolic link, not a file", path)
	}
	if err != nil {
		return nil, err
	}
	defer file.Close() //nolint:errcheck // nothing was written
	info, err := file.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a file (%s)", path, info.Mode().Type())
	}
	if err := checkPrivate(path, info, privateFile); err != nil {
		return nil, err
	}
	return readBounded(file, path, limit)
}

// readBounded reads at most limit bytes, and fails if there are more.
func readBounded(file io.Reader, path string, limit int) ([]byte, error) {
	content, err := io.ReadAll(io.LimitReader(file, int64(limit)+1))
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", path, err)
	}
	if len(content) > limit {
		return nil, fmt.Errorf("%s has more than %d bytes", path, limit)
	}
	return content, nil
}

// keep returns the line in a private file, and makes the file if there is none.
func keep(path string, line func() (string, error)) (string, error) {
	content, err := readPrivate(path, maxTokenFile)
	if !errors.Is(err, fs.ErrNotExist) {
		return strings.TrimSpace(string(content)), err
	}
	text, err := line()
	if err != nil {
		return "", err
	}
	return text, writePrivate(path, []byte(text+"\n"))
}

// writePrivate replaces a file as a whole: after a crash there is the old content or the new one.
// The new one is on disk when writePrivate returns. Only one call for a path may be in progress.
func writePrivate(path string, content []byte) (err error) {
	draft := path + ".tmp"
	if err := os.Remove(draft); err != nil && !errors.Is(err, fs.ErrNotExist) { // left by a crash
		return fmt.Errorf("writing %s: %w", path, err)
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("writing %s: %w", path, errors.Join(err, removeIfPresent(draft)))
		}
	}()
	file, err := os.OpenFile(draft, os.O_WRONLY|os.O_CREATE|os.O_EXCL, privateFile)
	if err != nil {
		return err
	}
	_, err = file.Write(content)
	if err == nil {
		err = file.Sync()
	}
	if err = errors.Join(err, file.Close()); err != nil {
		return err
	}
	if err := os.Rename(draft, path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

func removeIfPresent(path string) error {
	if err := os.Remove(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// syncDir puts the entries of a directory on disk.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// inode distinguishes a file from another one of the same name.
func inode(info fs.FileInfo) uint64 {
	if stat, ok := info.Sys().(*syscall.Stat_t); ok {
		return stat.Ino
	}
	return 0
}
