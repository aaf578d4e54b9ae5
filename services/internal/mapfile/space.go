package mapfile

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// ErrNoSpace means that a file system has too little space for a file.
var ErrNoSpace = errors.New("the file system has too little space")

// SpaceError says how much space a file needs, and how much its file system has. It matches
// [ErrNoSpace] and the operating system's error.
type SpaceError struct {
	// Needed is the size of the file, or of several, in bytes.
	Needed uint64
	// System describes the file system, whose size is Total. Available is what this user may still
	// use of it. Both are in bytes.
	System           string
	Total, Available uint64
	Cause            error
}

// Error says how much space there is.
func (e *SpaceError) Error() string {
	return fmt.Sprintf("%d bytes are needed: %s, of which %d are available: %v", e.Needed, e.System, e.Available, e.Cause)
}

// Is reports whether target is [ErrNoSpace].
func (*SpaceError) Is(target error) bool { return target == ErrNoSpace }

// Unwrap returns the cause.
func (e *SpaceError) Unwrap() error { return e.Cause }

// lacksSpace reports whether an error of the operating system is a lack of space.
func lacksSpace(err error) bool {
	return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) || errors.Is(err, unix.EFBIG)
}

// WithSpace returns a [SpaceError] if an error is a lack of space, and the error otherwise. The
// path need not exist.
func WithSpace(err error, path string, needed uint64) error {
	if known := (*SpaceError)(nil); !lacksSpace(err) || errors.As(err, &known) {
		return err
	}
	e, statErr := space(path)
	if statErr != nil {
		return err
	}
	e.Needed, e.Cause = needed, err
	return e
}

// CheckSpace returns a [SpaceError] if a file system has fewer bytes than are needed. The path need
// not exist.
func CheckSpace(path string, needed uint64) error {
	e, err := space(path)
	if known := err == nil; !known || e.Available >= needed {
		return nil // where it is not known, the file is tried
	}
	e.Needed, e.Cause = needed, unix.ENOSPC
	return e
}

// space describes the file system of a path that need not exist.
func space(path string) (*SpaceError, error) {
	var fs unix.Statfs_t
	folder := filepath.Dir(path)
	err := unix.Statfs(folder, &fs)
	for ; err != nil && folder != filepath.Dir(folder); err = unix.Statfs(folder, &fs) {
		folder = filepath.Dir(folder)
	}
	if err != nil {
		return nil, fmt.Errorf("statfs %s: %w", folder, err)
	}
	block := uint64(fs.Bsize)                                                        //nolint:gosec // positive
	e := &SpaceError{Total: fs.Blocks * block, Available: uint64(fs.Bavail) * block} //nolint:unconvert // as above
	e.System = spaceHint(path, folder, isTmpfs(&fs), e.Total)
	return e, nil
}

// spaceHint describes the file system that lacks space.
func spaceHint(path, folder string, tmpfs bool, total uint64) string {
	const containerDefault = 64 << 20
	switch {
	case tmpfs && strings.HasPrefix(path, "/dev/shm/") && total == containerDefault:
		return "the file system has the 64 MiB that a container gets for /dev/shm by default (more by docker run " +
			"--shm-size=..., or by a memory-backed volume on Kubernetes)"
	case tmpfs:
		return fmt.Sprintf("the tmpfs of %d bytes at %s", total, folder)
	default:
		return fmt.Sprintf("the file system of %d bytes at %s", total, folder)
	}
}
