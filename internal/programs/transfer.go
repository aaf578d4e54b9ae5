package programs

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/raylink/raylink/internal/backoff"
	"github.com/raylink/raylink/runtime/rundir"
)

func newHash() hash.Hash { return sha256.New() }

func sumOf(h hash.Hash) [sha256.Size]byte { return [sha256.Size]byte(h.Sum(nil)) }

// obtain returns a program from the cache, or fetches it. It can be executed at once.
func (c *Cache) obtain(ctx context.Context, id Identity, source Source) (*held, error) {
	h, err := c.findOrFetch(ctx, id, source)
	if err != nil {
		return nil, err
	}
	if err := awaitWriters(ctx, h.file); err != nil {
		h.release()
		return nil, err
	}
	return h, nil
}

// findOrFetch returns a program. Of all processes one fetches it; the others wait for its lock.
func (c *Cache) findOrFetch(ctx context.Context, id Identity, source Source) (*held, error) {
	if h, err := c.find(ctx, id); h != nil || err != nil {
		return h, err
	}
	lock, err := rundir.AcquireLock(ctx, c.path(transferName(id)+lockSuffix))
	if err != nil {
		return nil, err
	}
	h, err := c.find(ctx, id) // another process may have completed it
	if h == nil && err == nil {
		h, err = c.transfer(ctx, id, source)
	}
	// A waiter that gets the lock on a removed file notices it, and creates another one.
	if failed := errors.Join(os.Remove(lock.Path()), lock.Release()); failed != nil && h != nil {
		h.release()
		return nil, failed
	}
	return h, err
}

// transfer fetches a program. The caller has its transfer lock.
func (c *Cache) transfer(ctx context.Context, id Identity, source Source) (*held, error) {
	path := c.path(transferName(id) + partialSuffix)
	var file *os.File
	err := c.exclusive(ctx, func() (err error) {
		if err = c.makeRoom(id); err == nil {
			file, err = os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, partialMode)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	if err = reserve(file, id.Size); err == nil {
		err = receive(ctx, file, id, source)
	}
	stamp, statErr := stampOf(file)
	if err = errors.Join(err, statErr, file.Close()); err != nil {
		return nil, c.interrupted(path, stamp.size, id, err)
	}
	var h *held
	err = c.exclusive(ctx, func() (err error) {
		complete := c.path(nameOf(id))
		if err := os.Rename(path, complete); err != nil {
			return err
		}
		if err := os.Chmod(complete, programMode); err != nil {
			return err
		}
		c.sums.put(stamp, id.SHA256)
		h, err = c.hold(id)
		return err
	})
	return h, err
}

// writersLimit bounds the wait for processes that are being started.
const writersLimit = 10 * time.Second

// awaitWriters blocks until no process has a file open for writing: such a file can't be executed
// (ETXTBSY). A process that is being started has a copy of its parent's descriptors until it runs
// its program, see https://go.dev/issue/22315.
func awaitWriters(ctx context.Context, file *os.File) error {
	ctx, cancel := context.WithTimeoutCause(ctx, writersLimit, errors.New("a process has the file open for writing"))
	defer cancel()
	pause := backoff.Backoff{First: 100 * time.Microsecond, Max: 10 * time.Millisecond}
	for isOpenForWriting(file) {
		if err := pause.Wait(ctx); err != nil {
			return err
		}
	}
	return nil
}

// reserve allocates the space for a file's bytes, so that a full disk is noticed before the
// transfer. It is kept by a partial file, whose transfer then can be completed.
func reserve(file *os.File, size int64) error {
	if err := allocate(file, size); lacksSpace(err) {
		return err
	}
	return nil // where it can't be done, writes fail
}

func lacksSpace(err error) bool {
	return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT)
}

// interrupted decides whether the bytes of a failed transfer are kept: not if they are wrong, and
// not on a full disk, which only others can free.
func (c *Cache) interrupted(path string, size int64, id Identity, err error) error {
	full := lacksSpace(err)
	if wrong := (*HashError)(nil); full || size == 0 || errors.As(err, &wrong) || errors.Is(err, errTooLong) {
		err = errors.Join(err, os.Remove(path))
	} else {
		_ = os.Chtimes(path, time.Time{}, time.Now()) // finer than the time of the last write
	}
	var system unix.Statfs_t
	if !full || unix.Statfs(c.dir, &system) != nil {
		return err
	}
	free := int64(system.Bavail) * int64(system.Bsize) //nolint:gosec,unconvert // types differ among systems
	return &SpaceError{Needed: id.Size, Available: free, Where: "the file system of " + c.dir, Err: err}
}

// errTooLong is returned wrapped.
var errTooLong = errors.New("it sent more than the program has")

// receive completes a partial file, and verifies it as a whole.
func receive(ctx context.Context, file *os.File, id Identity, source Source) error {
	r := &receiver{file: file, sum: newHash(), size: id.Size, unhashed: make(chan []byte), hashed: make(chan struct{})}
	defer close(r.unhashed)
	go r.hash()
	there, err := copyHash(ctx, r.sum, file)
	if err != nil {
		return err
	}
	if there > id.Size {
		there = 0
		err = r.restart()
	}
	r.at = there
	for ; err == nil; there = 0 {
		if err = r.fetch(ctx, source); err != nil {
			break
		}
		got := sumOf(r.sum)
		switch {
		case got == id.SHA256:
			return nil
		case there == 0:
			return &HashError{Want: id.SHA256, Got: got, From: source.Name}
		}
		// The bytes that were there may be the wrong ones: the machine has crashed before they were
		// on its disk, or an earlier source was wrong.
		err = r.restart()
	}
	return err
}

// receiver is what a fetch writes to.
type receiver struct {
	file     *os.File
	sum      hash.Hash // of the bytes before at
	at, size int64
	err      error // the first error of Write, which returns it again
	// Bytes are hashed by a goroutine of their own while they are written, since both take about as
	// long. It has sum between a send on unhashed and a receive from hashed.
	unhashed chan []byte
	hashed   chan struct{}
}

// hash hashes what is sent until unhashed is closed.
func (r *receiver) hash() {
	for p := range r.unhashed {
		r.sum.Write(p)
		r.hashed <- struct{}{}
	}
}

func (r *receiver) restart() error {
	r.sum.Reset()
	r.at = 0
	if err := r.file.Truncate(0); err != nil {
		return err
	}
	return reserve(r.file, r.size) // which was truncated too
}

// fetch gets the bytes that lack.
func (r *receiver) fetch(ctx context.Context, source Source) error {
	if r.at == r.size {
		return nil
	}
	err := source.Fetch(ctx, r.at, r)
	switch {
	case r.err != nil:
		return r.err
	case r.at == r.size:
		return nil // whatever was wrong, it was after the last byte
	case ctx.Err() != nil:
		err = context.Cause(ctx)
	case err == nil:
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("interrupted after %d of %d bytes: %w", r.at, r.size, err)
}

// Write implements [io.Writer].
func (r *receiver) Write(p []byte) (int, error) {
	if r.err == nil && int64(len(p)) > r.size-r.at {
		r.err = fmt.Errorf("%w, %d bytes: what came was removed", errTooLong, r.size)
	}
	if r.err != nil {
		return 0, r.err
	}
	r.unhashed <- p
	n, err := r.file.WriteAt(p, r.at)
	<-r.hashed
	r.at += int64(n)
	r.err = err
	return n, err
}
