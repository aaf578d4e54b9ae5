//go:build linux && (amd64 || arm64 || loong64 || mips64le || ppc64le || riscv64)

package ring

import (
	"errors"
	"fmt"
	"io"
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

// createFile makes a new file of a size and reserves its space: to touch a page that the file system has no room for would
// end the process with SIGBUS.
func createFile(path string, size uint64) (*os.File, error) {
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
		err := unix.Fallocate(int(file.Fd()), 0, int64(from), int64(length)) //nolint:gosec // at most maxFile
		for try := 0; errors.Is(err, unix.EINTR) && try < reserveTries; try++ {
			err = unix.Fallocate(int(file.Fd()), 0, int64(from), int64(length)) //nolint:gosec // at most maxFile
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
		return "the 64 MiB that a container gets for /dev/shm by default (docker run --shm-size=..., or a memory-backed volume on Kubernetes, makes it larger)"
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

// openFile opens a file that belongs to the user alone, and gives its size.
func openFile(path string) (*os.File, int64, error) {
	file, err := os.OpenFile(path, os.O_RDWR|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, 0, err //nolint:wrapcheck // says all; the caller adds what was being done
	}
	size, err := checkFile(file)
	if err != nil {
		return nil, 0, errors.Join(err, file.Close())
	}
	return file, size, nil
}

func checkFile(file *os.File) (int64, error) {
	var stat unix.Stat_t
	if err := unix.Fstat(int(file.Fd()), &stat); err != nil {
		return 0, fmt.Errorf("stat: %w", err)
	}
	switch {
	case stat.Mode&unix.S_IFMT != unix.S_IFREG:
		return 0, fmt.Errorf("%w: it is not a regular file", ErrFormat)
	case int(stat.Uid) != os.Geteuid() || stat.Mode&0o077 != 0:
		return 0, fmt.Errorf("%w: it is not the user's alone (owner %d, mode %04o)", ErrFormat, stat.Uid, stat.Mode&0o7777)
	}
	return stat.Size, nil
}

// mapFile maps the whole file to be read, and its control part to be written.
func (r *Ring) mapFile() error {
	var err error
	if r.all, err = r.mmap(r.head.geometry.size, unix.PROT_READ); err != nil {
		return err
	}
	r.control, err = r.mmap(r.head.geometry.words, unix.PROT_READ|unix.PROT_WRITE)
	return err
}

func (r *Ring) mmap(size uint64, access int) ([]byte, error) {
	mapping, err := unix.Mmap(int(r.file.Fd()), 0, int(size), access, unix.MAP_SHARED) //nolint:gosec // at most maxFile and MaxInt
	if err != nil {
		return nil, fmt.Errorf("map %d bytes: %w", size, err)
	}
	return mapping, nil
}

// mapRows maps the whole file to be written. It wants r.life held for writing.
func (r *Ring) mapRows() error {
	if r.rows != nil {
		return nil
	}
	var err error
	r.rows, err = r.mmap(r.head.geometry.size, unix.PROT_READ|unix.PROT_WRITE)
	return err
}

// unmapFile gives everything back. It wants r.life held for writing.
func (r *Ring) unmapFile() error {
	errs := []error{r.leave()}
	for _, mapping := range []*[]byte{&r.all, &r.control, &r.rows} {
		if *mapping != nil {
			errs = append(errs, unix.Munmap(*mapping))
			*mapping = nil
		}
	}
	return errors.Join(append(errs, r.file.Close())...)
}

// lockByte locks one byte of a file for this opening of it, if nobody else has. isLocked tells that somebody has.
func lockByte(file *os.File, offset uint64) error {
	lock := byteLock(unix.F_WRLCK, offset)
	err := unix.FcntlFlock(file.Fd(), unix.F_OFD_SETLK, &lock)
	if err != nil && !isLocked(err) {
		return fmt.Errorf("lock byte %d: %w", offset, err)
	}
	return err
}

func isLocked(err error) bool { return errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES) }

func unlockByte(file *os.File, offset uint64) error {
	lock := byteLock(unix.F_UNLCK, offset)
	if err := unix.FcntlFlock(file.Fd(), unix.F_OFD_SETLK, &lock); err != nil {
		return fmt.Errorf("unlock byte %d: %w", offset, err)
	}
	return nil
}

// byteLocked says whether another opening of the file has locked a byte.
func byteLocked(file *os.File, offset uint64) (bool, error) {
	lock := byteLock(unix.F_WRLCK, offset)
	if err := unix.FcntlFlock(file.Fd(), unix.F_OFD_GETLK, &lock); err != nil {
		return false, fmt.Errorf("look for a lock on byte %d: %w", offset, err)
	}
	return lock.Type != unix.F_UNLCK, nil
}

func byteLock(kind int16, offset uint64) unix.Flock_t {
	return unix.Flock_t{Type: kind, Whence: io.SeekStart, Start: int64(offset), Len: 1} //nolint:gosec // at most maxFile
}

// bootID names this start of this machine's kernel: who has the same one shares its memory, containers included.
func bootID() ([16]byte, error) {
	text, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return [16]byte{}, fmt.Errorf("read the machine's boot id: %w", err)
	}
	id, err := ParseID(strings.ReplaceAll(strings.TrimSpace(string(text)), "-", ""))
	if err != nil {
		return [16]byte{}, fmt.Errorf("read the machine's boot id: %q is none", text)
	}
	return id, nil
}
