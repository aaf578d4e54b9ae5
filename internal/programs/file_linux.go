package programs

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// allocate allocates a file's blocks, and leaves its size.
func allocate(file *os.File, size int64) error {
	return unix.Fallocate(int(file.Fd()), unix.FALLOC_FL_KEEP_SIZE, 0, size)
}

// isOpenForWriting reports whether a process has a file open for writing, if the file system can
// find out. The file is open for reading only. No lease for reading is given on one that has
// writers, see F_SETLEASE in fcntl(2).
func isOpenForWriting(file *os.File) bool {
	_, err := unix.FcntlInt(file.Fd(), unix.F_SETLEASE, unix.F_RDLCK)
	if err == nil {
		_, _ = unix.FcntlInt(file.Fd(), unix.F_SETLEASE, unix.F_UNLCK) // at the latest when it is closed
	}
	return errors.Is(err, unix.EAGAIN)
}
