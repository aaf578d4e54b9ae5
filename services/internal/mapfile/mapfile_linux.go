//go:build linux && (amd64 || arm64 || loong64 || mips64le || ppc64le || riscv64)

package mapfile

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// reserveStep is how much of a file is reserved at once: a signal (the Go runtime sends itself some) makes tmpfs give back
// what one call had reserved so far.
const (
	reserveStep  = 64 << 20
	reserveTries = 1000
)

// Create makes a new file of a size, the user's alone, and reserves its space: to touch a mapped page that the file system has
// no room for would end the process with SIGBUS. Where there is not enough, the error says how much there is, and no file stays.
func Create(path string, size uint64) (*os.File, error) {
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err //nolint:wrapcheck // says all; the caller adds what was being done
	}
	if err := reserve(file, path, size); err != nil {
		return nil, errors.Join(err, file.Close(), os.Remove(path))
	}
	return file, nil
}

func reserve(file *os.File, path string, size uint64) error {
	var fs unix.Statfs_t
	if err := unix.Fstatfs(int(file.Fd()), &fs); err == nil && fs.Bavail < size/uint64(fs.Bsize) { //nolint:gosec // positive
		return reserveError(unix.ENOSPC, path, size) // better than to fill it up first
	}
	for from := uint64(0); from < size; from += reserveStep {
		length := min(reserveStep, size-from)
		err := unix.Fallocate(int(file.Fd()), 0, int64(from), int64(length))
		for try := 0; errors.Is(err, unix.EINTR) && try < reserveTries; try++ {
			err = unix.Fallocate(int(file.Fd()), 0, int64(from), int64(length))
		}
		if err != nil {
			return reserveError(err, path, size)
		}
	}
	return nil
}

// reserveError says why there was no space, where that can be known.
func reserveError(err error, path string, size uint64) error {
	switch {
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT), errors.Is(err, unix.EFBIG):
	case errors.Is(err, unix.EOPNOTSUPP):
		return fmt.Errorf("reserve %d bytes: the file system can't (fallocate): choose a directory on another one: %w", size, err)
	default:
		return fmt.Errorf("reserve %d bytes: %w", size, err)
	}
	var fs unix.Statfs_t
	if statErr := unix.Statfs(parent(path), &fs); statErr != nil {
		return fmt.Errorf("reserve %d bytes: %w", size, err)
	}
	block := uint64(fs.Bsize) //nolint:gosec // positive
	total := fs.Blocks * block
	text := spaceHint(path, fs.Type == unix.TMPFS_MAGIC, total)
	return fmt.Errorf("reserve %d bytes: %s is too small or too full: %w", size, text, err)
}

// spaceHint names the file system that had no room.
func spaceHint(path string, tmpfs bool, total uint64) string {
	const containerDefault = 64 << 20
	switch {
	case tmpfs && strings.HasPrefix(path, "/dev/shm/") && total == containerDefault:
		return "the 64 MiB that a container gets for /dev/shm by default (more by docker run --shm-size=..., " +
			"or by a memory-backed volume on Kubernetes)"
	case tmpfs:
		return fmt.Sprintf("the tmpfs of %d bytes at %s", total, parent(path))
	default:
		return fmt.Sprintf("the file system of %d bytes at %s", total, parent(path))
	}
}

func parent(path string) string {
	if i := strings.LastIndexByte(path, '/'); i > 0 {
		return path[:i]
	} else if i == 0 {
		return "/"
	}
	return "."
}

// Open opens a file to be read and written, and gives its size. A file that is not the user's alone is refused with [ErrForeign].
func Open(path string) (*os.File, int64, error) {
	file, err := os.OpenFile(path, os.O_RDWR|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, 0, err //nolint:wrapcheck // says all; the caller adds what was being done
	}
	size, err := check(file)
	if err != nil {
		return nil, 0, errors.Join(err, file.Close())
	}
	return file, size, nil
}

func check(file *os.File) (int64, error) {
	var stat unix.Stat_t
	if err := unix.Fstat(int(file.Fd()), &stat); err != nil {
		return 0, fmt.Errorf("stat: %w", err)
	}
	switch {
	case stat.Mode&unix.S_IFMT != unix.S_IFREG:
		return 0, fmt.Errorf("%w: it is not a regular file", ErrForeign)
	case int(stat.Uid) != os.Geteuid() || stat.Mode&0o077 != 0:
		return 0, fmt.Errorf("%w: it has owner %d and mode %04o", ErrForeign, stat.Uid, stat.Mode&0o7777)
	}
	return stat.Size, nil
}

// Map maps the beginning of a file, which others may map as well.
func Map(file *os.File, size uint64, access Access) ([]byte, error) {
	protection := unix.PROT_READ
	if access == ReadWrite {
		protection |= unix.PROT_WRITE
	}
	if size == 0 || size > math.MaxInt {
		return nil, fmt.Errorf("map %d bytes: %w", size, unix.EINVAL)
	}
	mapping, err := unix.Mmap(int(file.Fd()), 0, int(size), protection, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map %d bytes: %w", size, err)
	}
	return mapping, nil
}

// Unmap ends a mapping. Nothing may use it any more. A nil mapping is none.
func Unmap(mapping []byte) error {
	if mapping == nil {
		return nil
	}
	if err := unix.Munmap(mapping); err != nil {
		return fmt.Errorf("unmap: %w", err)
	}
	return nil
}

// Lock locks one byte of a file for this opening of it, or says with [ErrLocked] that another has. The kernel ends the lock
// when the file is closed and unmapped, which it is when the process has ended, in whatever way.
func Lock(file *os.File, offset uint64) error {
	lock := byteLock(unix.F_WRLCK, offset)
	err := unix.FcntlFlock(file.Fd(), unix.F_OFD_SETLK, &lock)
	switch {
	case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EACCES):
		return ErrLocked
	case err != nil:
		return fmt.Errorf("lock byte %d: %w", offset, err)
	default:
		return nil
	}
}

// Unlock ends a lock.
func Unlock(file *os.File, offset uint64) error {
	lock := byteLock(unix.F_UNLCK, offset)
	if err := unix.FcntlFlock(file.Fd(), unix.F_OFD_SETLK, &lock); err != nil {
		return fmt.Errorf("unlock byte %d: %w", offset, err)
	}
	return nil
}

// Locked says whether another opening of the file has locked a byte.
func Locked(file *os.File, offset uint64) (bool, error) {
	lock := byteLock(unix.F_WRLCK, offset)
	if err := unix.FcntlFlock(file.Fd(), unix.F_OFD_GETLK, &lock); err != nil {
		return false, fmt.Errorf("look for a lock on byte %d: %w", offset, err)
	}
	return lock.Type != unix.F_UNLCK, nil
}

func byteLock(kind int16, offset uint64) unix.Flock_t {
	return unix.Flock_t{Type: kind, Whence: io.SeekStart, Start: int64(offset), Len: 1} //nolint:gosec // a file's size
}

// BootID names this start of this machine's kernel: who has the same one shares its memory, containers included.
func BootID() ([16]byte, error) {
	text, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return [16]byte{}, fmt.Errorf("read the machine's boot id: %w", err)
	}
	digits, err := hex.DecodeString(strings.ReplaceAll(strings.TrimSpace(string(text)), "-", ""))
	if err != nil || len(digits) != 16 {
		return [16]byte{}, fmt.Errorf("read the machine's boot id: %q is none", text)
	}
	return [16]byte(digits), nil
}
