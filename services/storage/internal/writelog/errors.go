package writelog

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/raylink/raylink/services/storage/internal/changelog"
)

// What package changelog declares, for programs that do not link this package.
type (
	// Record is one write.
	Record = changelog.Record
	// InUseError is the error for a directory that is open already.
	InUseError = changelog.InUseError
	// FormatError is the error for a directory that a newer version has written.
	FormatError = changelog.FormatError
	// DamagedError is the error for a directory whose records cannot all be read.
	DamagedError = changelog.DamagedError
	// FullError is the error of a write for which there is no space.
	FullError = changelog.FullError
)

// errClosed is returned by a log that has been closed.
var errClosed = errors.New("the log is closed")

// failure describes an error of an operation on the files of a directory.
func failure(dir, doing string, err error) error {
	if isFull(err) {
		return &FullError{Dir: dir, Err: err}
	}
	return fmt.Errorf("%s the directory %s: %w", doing, dir, err)
}

func isFull(err error) bool {
	return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT)
}

// refused reports whether the operating system refused an operation: permissions, limits, a disk
// that fails. Such an error does not mean that the data are damaged.
func refused(err error) bool {
	var number unix.Errno
	return errors.As(err, &number) && number != unix.ENOENT
}
