package programs

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// File is an open executable, to be sent. It stays the same file when that at its path is replaced.
// It is safe for concurrent use.
type File struct {
	file     *os.File
	identity Identity
}

// OpenFile opens an executable and finds out its [Identity]. It is hashed when it is opened first,
// and again if it has changed.
func OpenFile(path string) (*File, error) {
	f, err := openFile(path, filepath.Base(path))
	if err != nil {
		return nil, fmt.Errorf("the program %s: %w", path, err)
	}
	return f, nil
}

// Self opens this process's executable: on Linux the one that runs, even if the file has been
// replaced or removed since; elsewhere the file that is at its path.
func Self() (*File, error) {
	path, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("finding this program's executable: %w", err)
	}
	running := path
	if runtime.GOOS == "linux" {
		running = "/proc/self/exe"
	}
	f, err := openFile(running, filepath.Base(path))
	if err != nil {
		return nil, fmt.Errorf("this program, %s: %w", path, err)
	}
	return f, nil
}

// Identify returns the identity of an executable, as [OpenFile] does.
func Identify(path string) (Identity, error) {
	f, err := OpenFile(path)
	if err != nil {
		return Identity{}, err
	}
	return f.Identity(), f.Close()
}

// Identity returns the identity that the file had when it was opened.
func (f *File) Identity() Identity { return f.identity }

// Chunk returns the bytes at an offset: [ChunkSize] of them, fewer at the end of the file, and none
// if the offset is its size. The caller owns them.
func (f *File) Chunk(offset int64) ([]byte, error) {
	size := f.identity.Size
	if offset < 0 || offset > size {
		return nil, fmt.Errorf("the program %s: the offset %d is outside of its %d bytes", f.identity.Name, offset, size)
	}
	chunk := make([]byte, min(ChunkSize, size-offset))
	if n, err := f.file.ReadAt(chunk, offset); n < len(chunk) {
		return nil, fmt.Errorf("the program %s: reading %d bytes at %d: %w", f.identity.Name, len(chunk), offset, err)
	}
	return chunk, nil
}

// Close closes the file.
func (f *File) Close() error {
	if err := f.file.Close(); err != nil {
		return fmt.Errorf("the program %s: %w", f.identity.Name, err)
	}
	return nil
}

// identified has the hashes of the files that this process has opened by [OpenFile].
//
//nolint:gochecknoglobals // a file is hashed once in a process
var identified = struct {
	hashing sync.Mutex // held while a file is hashed, so that each one is hashed once
	sums    sums
}{}

func openFile(path, name string) (*File, error) {
	file, stamp, err := openRegular(path)
	if err != nil {
		return nil, err
	}
	id, err := identify(file, stamp)
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	id.Name = name
	return &File{file: file, identity: id}, nil
}

func identify(file *os.File, before stamp) (Identity, error) {
	goos, goarch, err := platform(file)
	if err != nil {
		return Identity{}, err
	}
	identified.hashing.Lock()
	defer identified.hashing.Unlock()
	id := Identity{Size: before.size, GOOS: goos, GOARCH: goarch}
	if known, ok := identified.sums.get(before); ok {
		id.SHA256 = known
		return id, nil
	}
	started := time.Now()
	sum := newHash()
	if _, err := copyHash(context.Background(), sum, file); err != nil {
		return Identity{}, err
	}
	if after, err := stampOf(file); err != nil || after != before {
		return Identity{}, errors.Join(errors.New("it was changed while it was read"), err)
	}
	id.SHA256 = sumOf(sum)
	if started.Sub(time.Unix(0, before.mtime)) >= racy {
		identified.sums.put(before, id.SHA256)
	}
	return id, nil
}

// racy is how old a file's last change must be for its hash to be remembered: within the resolution
// of its file system's clock, a later change would leave the same time. See "Racy Git" in git's
// technical documentation. Two seconds is that of FAT, the coarsest one.
const racy = 2 * time.Second

// stamp is what changes if a file's content does.
type stamp struct {
	dev, ino    uint64
	size, mtime int64 // in bytes, and in nanoseconds since 1970
}

// openRegular opens a regular file for reading, without waiting for a pipe's other end.
func openRegular(path string) (*os.File, stamp, error) {
	file, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, stamp{}, err
	}
	s, err := stampOf(file)
	if err != nil {
		return nil, stamp{}, errors.Join(err, file.Close())
	}
	return file, s, nil
}

// stampOf returns a regular file's stamp.
func stampOf(file *os.File) (stamp, error) {
	var stat unix.Stat_t
	if err := unix.Fstat(int(file.Fd()), &stat); err != nil {
		return stamp{}, &fs.PathError{Op: "stat", Path: file.Name(), Err: err}
	}
	if stat.Mode&unix.S_IFMT != unix.S_IFREG {
		return stamp{}, errors.New("it is not a regular file")
	}
	return stamp{
		dev: uint64(stat.Dev), ino: stat.Ino, size: stat.Size, mtime: stat.Mtim.Nano(), //nolint:unconvert // it is signed on darwin
	}, nil
}

// copyHash feeds a whole file to a hash, unless ctx ends, and returns how many bytes it has.
func copyHash(ctx context.Context, into hash.Hash, file io.ReaderAt) (int64, error) {
	buffer := make([]byte, ChunkSize)
	for at := int64(0); ; {
		if ctx.Err() != nil {
			return at, context.Cause(ctx)
		}
		n, err := file.ReadAt(buffer, at)
		into.Write(buffer[:n])
		at += int64(n)
		switch {
		case errors.Is(err, io.EOF):
			return at, nil
		case err != nil:
			return at, err
		}
	}
}

// sums remembers the hashes of files, as long as they don't change. It is safe for concurrent use.
type sums struct {
	mu    sync.Mutex
	known map[stamp][sha256.Size]byte
}

// maxSums bounds how many hashes are remembered. One that is forgotten costs a reading of its file.
const maxSums = 256

func (s *sums) get(of stamp) ([sha256.Size]byte, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	sum, ok := s.known[of]
	return sum, ok
}

func (s *sums) put(of stamp, sum [sha256.Size]byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.known == nil {
		s.known = make(map[stamp][sha256.Size]byte)
	}
	if len(s.known) >= maxSums {
		for one := range s.known {
			delete(s.known, one)
			break
		}
	}
	s.known[of] = sum
}
