package archive

import (
	"errors"
	"fmt"
	"math"
	"os"

	"golang.org/x/sys/unix"
)

// lock takes the directory's lock, which orders its writers, and waits for it. It ends with the
// process.
func lock(root *os.Root) (unlock func() error, err error) {
	folder, err := root.Open(".")
	if err != nil {
		return nil, err
	}
	for {
		err = unix.Flock(int(folder.Fd()), unix.LOCK_EX)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", root.Name(), err), folder.Close())
	}
	return folder.Close, nil
}

// openFile opens a regular file for reading, and returns its size. Others it refuses: opening some
// of them could block.
func openFile(root *os.Root, name string) (*os.File, int64, error) {
	file, err := root.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, 0, err
	}
	info, err := file.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%w: %s is not a regular file", ErrDamaged, name)
	}
	if err != nil {
		return nil, 0, errors.Join(err, file.Close())
	}
	return file, info.Size(), nil
}

// mapFile maps a whole file for reading.
func mapFile(root *os.Root, name string) (content []byte, unmap func() error, err error) {
	file, size, err := openFile(root, name)
	if err != nil {
		return nil, nil, err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	if size == 0 {
		return nil, func() error { return nil }, nil
	}
	if size > math.MaxInt {
		return nil, nil, fmt.Errorf("map %s: its %d bytes are too many", name, size)
	}
	content, err = unix.Mmap(int(file.Fd()), 0, int(size), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil, nil, fmt.Errorf("map %s: %w", name, err)
	}
	return content, func() error { return unix.Munmap(content) }, nil
}

func outOfSpace(err error) bool {
	return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) || errors.Is(err, unix.EFBIG)
}

// freeSpace returns what a file system has left for its user, in bytes; 0 if that is unknown.
func freeSpace(directory string) uint64 {
	var stat unix.Statfs_t
	if err := unix.Statfs(directory, &stat); err != nil {
		return 0
	}
	return stat.Bavail * uint64(stat.Bsize) //nolint:gosec // positive
}
