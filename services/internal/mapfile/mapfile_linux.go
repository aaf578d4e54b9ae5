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
	"time"
	"unsafe" //nolint:depguard // addresses of mappings: see MapWindow

	"golang.org/x/sys/unix"
)

// reserveStep is the size of the reservations: when a signal interrupts a call (the Go runtime
// sends itself signals), tmpfs releases what the call had reserved so far.
const (
	reserveStep  = 64 << 20
	reserveTries = 1000
)

// Create creates a file of the given size that only its user can access, and reserves its space:
// accessing a mapped page for which the file system has no space would crash the process with
// SIGBUS. If space is short, the error says how much is available, and no file is left.
func Create(path string, size uint64) (*os.File, error) {
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err //nolint:wrapcheck // complete; the caller adds the operation
	}
	if err := reserve(file, path, 0, size); err != nil {
		return nil, errors.Join(err, file.Close(), os.Remove(path))
	}
	return file, nil
}

// reserve reserves the space of a file from an offset to its end.
func reserve(file *os.File, path string, offset, size uint64) error {
	var fs unix.Statfs_t
	if err := unix.Fstatfs(int(file.Fd()), &fs); err == nil && fs.Bavail < (size-offset)/uint64(fs.Bsize) { //nolint:gosec // positive
		return reserveError(unix.ENOSPC, path, size) // avoids filling the file system first
	} else if err == nil && isTmpfs(&fs) && size-offset >= largeFrom {
		reserveLarge(file, offset, size)
	}
	for from := offset; from < size; from += reserveStep {
		length := min(reserveStep, size-from)
		err := unix.Fallocate(int(file.Fd()), 0, int64(from), int64(length)) //nolint:gosec // a file's size
		for try := 0; errors.Is(err, unix.EINTR) && try < reserveTries; try++ {
			err = unix.Fallocate(int(file.Fd()), 0, int64(from), int64(length)) //nolint:gosec // a file's size
		}
		if err != nil {
			return reserveError(err, path, size)
		}
	}
	return nil
}

// largeFrom is the size in bytes from which space on a tmpfs is reserved in large pages.
const largeFrom = 8 << 20

// reserveLarge reserves what it can of a new range of a file on a tmpfs, in large pages. It is best
// effort: it ends when there are none.
//
// A tmpfs allocates large pages only if it was mounted so, which is rare. But collapsing a range
// with one small page in it fills the holes with a large page: nothing but that page is copied.
// Measured for 256 MiB: 45 ms to reserve, map, write and free the space, and 300 ms in small pages.
func reserveLarge(file *os.File, offset, size uint64) {
	if file.Truncate(int64(size)) != nil { //nolint:gosec // a file's size
		return // the caller finds out why
	}
	end := size / hugePage * hugePage
	for from := (offset + hugePage - 1) / hugePage * hugePage; from < end; from += reserveStep {
		length := min(reserveStep, end-from)
		for at := from; at < from+length; at += hugePage {
			if _, err := file.WriteAt([]byte{0}, int64(at)); err != nil { //nolint:gosec // a file's size
				return
			}
		}
		if collapse(file, from, length) != nil {
			return
		}
	}
}

// reserveError adds the cause of a lack of space, where it is known.
func reserveError(err error, path string, size uint64) error {
	switch {
	case lacksSpace(err):
		return fmt.Errorf("reserve its space: %w", WithSpace(err, path, size))
	case errors.Is(err, unix.EOPNOTSUPP):
		return fmt.Errorf("reserve %d bytes: the file system does not support fallocate: use a directory on another one: %w", size, err)
	default:
		return fmt.Errorf("reserve %d bytes: %w", size, err)
	}
}

func isTmpfs(fs *unix.Statfs_t) bool { return fs.Type == unix.TMPFS_MAGIC }

// Open opens a file for reading and writing, and returns its size. It returns [ErrForeign] if
// others than its user can access the file.
func Open(path string) (*os.File, int64, error) {
	file, err := os.OpenFile(path, os.O_RDWR|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, unix.ELOOP) {
		return nil, 0, fmt.Errorf("%w: it is a symbolic link", ErrForeign)
	}
	if err != nil {
		return nil, 0, err //nolint:wrapcheck // complete; the caller adds the operation
	}
	size, err := check(file)
	if err != nil {
		return nil, 0, errors.Join(err, file.Close())
	}
	return file, size, nil
}

// Stat returns what identifies an open file, its size and its number of names.
func Stat(file *os.File) (Status, error) {
	var stat unix.Stat_t
	if err := unix.Fstat(int(file.Fd()), &stat); err != nil {
		return Status{}, fmt.Errorf("stat: %w", err)
	}
	return Status{
		ID:    ID{Device: uint64(stat.Dev), Inode: stat.Ino}, //nolint:unconvert // its size depends on the machine
		Size:  uint64(stat.Size),                             //nolint:gosec // a file's size
		Links: uint64(stat.Nlink),                            //nolint:unconvert // its size depends on the machine
	}, nil
}

// Resize changes the size of a file and reserves its space, as [Create] does. If space is short,
// the size is unspecified.
func Resize(file *os.File, size uint64) error {
	before, err := Stat(file)
	if err != nil {
		return err
	}
	if err := file.Truncate(int64(size)); err != nil { //nolint:gosec // fails if it is negative
		return err //nolint:wrapcheck // complete; the caller adds the operation
	}
	return reserve(file, file.Name(), min(before.Size, size), size)
}

// Boottime returns the time since the machine was booted. It is the same for all processes, and
// goes on while the machine is suspended.
func Boottime() time.Duration {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &now); err != nil {
		return 0 // can't happen: the clock exists since Linux 2.6.39
	}
	return time.Duration(now.Nano())
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

// Map maps the beginning of a file. The mapping is shared with other processes that map the file.
// Large pages of the file are mapped as such: the processor then needs one entry of its page tables
// for 2 MiB, and copies rows of 1 KiB one after the other 1.2 times as fast.
func Map(file *os.File, size uint64, access Access) ([]byte, error) {
	return mmap(file, size, access, unix.MAP_SHARED)
}

// MapPopulated is Map with all of the pages, so that accessing them causes no page faults.
func MapPopulated(file *os.File, size uint64, access Access) ([]byte, error) {
	return mmap(file, size, access, unix.MAP_SHARED|unix.MAP_POPULATE)
}

// InMemory reports whether a file is on a tmpfs.
func InMemory(file *os.File) bool {
	var fs unix.Statfs_t
	return unix.Fstatfs(int(file.Fd()), &fs) == nil && isTmpfs(&fs)
}

// hugePage is the size of the processor's large pages: 2 MiB on amd64, and on arm64 with pages of
// 4 KiB.
const hugePage = 2 << 20

// Collapse moves the content of a file on a tmpfs to large pages, as far as there are some: then
// mapping and unmapping it costs next to nothing. It may be called while other processes use the
// file. It is best effort, and takes about 1.7 ms for each MiB.
func Collapse(file *os.File, size uint64) error {
	size = size / hugePage * hugePage
	if size == 0 {
		return nil
	}
	return collapse(file, 0, size)
}

// collapseTries bounds how often a range is tried again.
const collapseTries = 3

// collapse collapses a range of large pages.
func collapse(file *os.File, offset, size uint64) error {
	w, err := MapWindow(file, offset, size)
	if err != nil {
		return err
	}
	err = unix.Madvise(w.Bytes(), unix.MADV_COLLAPSE)
	for try := 0; errors.Is(err, unix.EAGAIN) && try < collapseTries; try++ { // the kernel used a page otherwise
		err = unix.Madvise(w.Bytes(), unix.MADV_COLLAPSE)
	}
	if err != nil {
		err = fmt.Errorf("collapse %d bytes: %w", size, err)
	}
	return errors.Join(err, w.Unmap())
}

// Window is a part of a file that is mapped for writing.
type Window struct {
	// mapping begins with the large page of the window's first byte, which is at skip.
	mapping []byte
	skip    int
}

// MapWindow maps size bytes of a file for writing, such that large pages of the file are mapped as
// such.
func MapWindow(file *os.File, offset, size uint64) (*Window, error) {
	first := offset / hugePage * hugePage
	mapping, err := mapAligned(file, first, offset-first+size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, err
	}
	return &Window{mapping, int(offset - first)}, nil //nolint:gosec // smaller than a page
}

// Bytes returns the mapped bytes. They must not be used after Unmap.
func (w *Window) Bytes() []byte { return w.mapping[w.skip:] }

// Populate maps the pages of the window at once, which is faster than a page fault for each. It is
// best effort: before Linux 5.14 it does nothing.
func (w *Window) Populate() {
	page := os.Getpagesize()
	whole := w.mapping[w.skip/page*page:]
	_ = unix.Madvise(whole, unix.MADV_POPULATE_WRITE)
}

// Unmap removes the mapping.
func (w *Window) Unmap() error { return Unmap(w.mapping) }

func mmap(file *os.File, size uint64, access Access, flags int) ([]byte, error) {
	protection := unix.PROT_READ
	if access == ReadWrite {
		protection |= unix.PROT_WRITE
	}
	return mapAligned(file, 0, size, protection, flags)
}

// mapAligned maps a part of a file that begins at a multiple of the size of large pages. If the
// part is not smaller than one, so does the mapping: only then are large pages mapped as such.
func mapAligned(file *os.File, offset, size uint64, protection, flags int) ([]byte, error) {
	if size == 0 || size > math.MaxInt-hugePage {
		return nil, fmt.Errorf("map %d bytes: %w", size, unix.EINVAL)
	}
	length, fd, from := uintptr(size), int(file.Fd()), int64(offset) //nolint:gosec // a file's size
	if size < hugePage {
		start, err := unix.MmapPtr(fd, from, nil, length, protection, flags)
		if err != nil {
			return nil, fmt.Errorf("map %d bytes: %w", size, err)
		}
		return unsafe.Slice((*byte)(start), length), nil //nolint:gosec // the mapping above
	}
	// The kernel has no flag for the alignment. So the part is mapped over a reserved range of
	// addresses that certainly contains an aligned one, and what is left of that is given back.
	const reserved = unix.MAP_PRIVATE | unix.MAP_ANONYMOUS | unix.MAP_NORESERVE
	room, err := unix.MmapPtr(-1, 0, nil, length+hugePage, unix.PROT_NONE, reserved)
	if err != nil {
		return nil, fmt.Errorf("map %d bytes: %w", size, err)
	}
	before := (hugePage - uintptr(room)%hugePage) % hugePage
	start := unsafe.Add(room, before)
	if _, err := unix.MmapPtr(fd, from, start, length, protection, flags|unix.MAP_FIXED); err != nil {
		return nil, errors.Join(fmt.Errorf("map %d bytes: %w", size, err), unmap(room, length+hugePage))
	}
	page := uintptr(os.Getpagesize())
	end := (before + length + page - 1) / page * page
	if err := errors.Join(unmap(room, before), unmap(unsafe.Add(room, end), length+hugePage-end)); err != nil {
		return nil, errors.Join(err, unmap(start, length))
	}
	return unsafe.Slice((*byte)(start), length), nil //nolint:gosec // the mapping above
}

// unmap removes what is mapped to a range of addresses, which may be empty.
func unmap(start unsafe.Pointer, length uintptr) error {
	if length == 0 {
		return nil
	}
	if err := unix.MunmapPtr(start, length); err != nil {
		return fmt.Errorf("unmap: %w", err)
	}
	return nil
}

// Unmap removes a mapping, which must not be used afterwards. It accepts nil.
func Unmap(mapping []byte) error {
	return unmap(unsafe.Pointer(unsafe.SliceData(mapping)), uintptr(len(mapping))) //nolint:gosec // all of it
}

// Lock locks one byte of a file for this open file description. It returns [ErrLocked] if another
// one holds the lock. The kernel releases the lock when the file is closed and unmapped, at the
// latest when the process has ended for any reason.
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

// LockShared locks one byte of a file for this open file description. Others can share the lock. It
// returns [ErrLocked] if another one holds the lock exclusively.
func LockShared(file *os.File, offset uint64) error {
	lock := byteLock(unix.F_RDLCK, offset)
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

// Unlock releases a lock.
func Unlock(file *os.File, offset uint64) error {
	lock := byteLock(unix.F_UNLCK, offset)
	if err := unix.FcntlFlock(file.Fd(), unix.F_OFD_SETLK, &lock); err != nil {
		return fmt.Errorf("unlock byte %d: %w", offset, err)
	}
	return nil
}

// Locked reports whether another open file description has locked a byte.
func Locked(file *os.File, offset uint64) (bool, error) {
	lock := byteLock(unix.F_WRLCK, offset)
	if err := unix.FcntlFlock(file.Fd(), unix.F_OFD_GETLK, &lock); err != nil {
		return false, fmt.Errorf("query lock of byte %d: %w", offset, err)
	}
	return lock.Type != unix.F_UNLCK, nil
}

func byteLock(kind int16, offset uint64) unix.Flock_t {
	return unix.Flock_t{Type: kind, Whence: io.SeekStart, Start: int64(offset), Len: 1} //nolint:gosec // a file's size
}

// BootID identifies this boot of the machine's kernel. Processes with the same boot id, including
// those in containers, share memory.
func BootID() ([16]byte, error) {
	text, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return [16]byte{}, fmt.Errorf("read the machine's boot id: %w", err)
	}
	digits, err := hex.DecodeString(strings.ReplaceAll(strings.TrimSpace(string(text)), "-", ""))
	if err != nil || len(digits) != 16 {
		return [16]byte{}, fmt.Errorf("read the machine's boot id: invalid id %q", text)
	}
	return [16]byte(digits), nil
}
