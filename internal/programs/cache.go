package programs

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/raylink/raylink/runtime/rundir"
)

// Fetch writes the bytes of a program from an offset to its end, in order. It ends soon after ctx
// does, passes on an error of the writer, and does not write after it has returned. What it has
// written before it fails is kept.
type Fetch func(ctx context.Context, offset int64, into io.Writer) error

// Source is where a program can be fetched from.
type Source struct {
	// Name says where that is, for errors. Sources with the same name are the same: the callers
	// that wait for one share its failure. Those that wait for the same program from another source
	// don't, and continue the transfer from there.
	Name  string
	Fetch Fetch
}

// Cache keeps programs in a directory, which several processes of a user can share. It is safe for
// concurrent use.
//
// The directory has a file for each program, named by its SHA-256; while a program is incomplete,
// `<SHA-256>-<size>.partial`, and while it is transferred also `<SHA-256>-<size>.lock`, locked by
// the process that transfers. A process that uses a program has a shared lock on it. The file
// `lock` is locked for the moments in which files change their names, come and leave.
type Cache struct {
	dir      string
	maxBytes int64
	// section is the part of the lock on the directory that is among this process's goroutines.
	section chan struct{}
	// sums has the programs that have been verified since Open.
	sums sums
	// flying counts goroutines of flights. It grows only while closed is false.
	flying sync.WaitGroup

	mu      sync.Mutex // guards the fields below, and those of flights
	closed  bool
	flights map[flightKey]*flight
}

// Modes of what the cache makes.
const (
	directoryMode = 0o700
	partialMode   = 0o600
	programMode   = 0o500
)

const (
	directoryLock = "lock"
	partialSuffix = ".partial"
	lockSuffix    = ".lock"
)

// Open opens the cache in a directory, which is created if it does not exist, and must be of this
// user alone. Its files have at most maxBytes: if they have more, or partial files that were
// abandoned, some are removed. What this process may not remove because it is in use stays.
func Open(ctx context.Context, dir string, maxBytes int64) (*Cache, error) {
	c := &Cache{dir: dir, maxBytes: maxBytes, section: make(chan struct{}, 1), flights: make(map[flightKey]*flight)}
	err := errors.New("its bound must be positive")
	if maxBytes > 0 {
		err = makePrivate(dir)
	}
	if err == nil {
		err = c.exclusive(ctx, c.trim)
	}
	if err != nil {
		return nil, fmt.Errorf("the cache of programs in %s: %w", dir, err)
	}
	return c, nil
}

// Close ends the transfers in progress, whose bytes are kept, and waits for them. Programs that are
// in use stay so until they are released.
func (c *Cache) Close() {
	c.mu.Lock()
	c.closed = true
	for _, f := range c.flights {
		f.cancel(ErrClosed)
	}
	c.mu.Unlock()
	c.flying.Wait()
}

// Use is a program in use: it is not removed from the cache.
type Use struct {
	held *held
	once sync.Once
}

// Path returns the path of the executable file. It is verified, and can be executed at once.
func (u *Use) Path() string { return u.held.file.Name() }

// Release ends the use. A process that still runs the program is not disturbed if the file is
// removed. Further calls do nothing.
func (u *Use) Release() {
	u.once.Do(func() {
		if u.held.users.Add(-1) == 0 {
			u.held.release()
		}
	})
}

// held is a file of the cache with a shared lock.
type held struct {
	file  *os.File
	stamp stamp
	users atomic.Int32
}

// release gives the lock up, after recording the time. The lock ends here even if a process that is
// being started has a copy of the descriptor.
func (h *held) release() {
	touch(h.file.Name())
	_ = unix.Flock(int(h.file.Fd()), unix.LOCK_UN) // closing it does the same, if later
	_ = h.file.Close()                             // only read
}

// touch records that a program is used now. The time of its last change, by which [sums] knows it,
// stays. If the file was replaced meanwhile, the new one is that of the same program.
func touch(path string) { _ = os.Chtimes(path, time.Now(), time.Time{}) }

// Get returns a program. If the cache lacks it, it is fetched from the source; callers that want
// the same program share the transfer, which ends when the last of them has gone. Get blocks until
// the program is there, ctx ends, or it fails:
//
//   - with a [*PlatformError] if it is for another platform than this machine's,
//   - with a [*SpaceError] if it is larger than the cache's bound, or there is too little space
//     beside what is in use,
//   - with a [*HashError] if the source has sent something else,
//   - with the error of the fetch: the next Get continues where this one was interrupted.
//
// Size and times of a file are checked by each Get. It is hashed as a whole by the first one since
// Open, and if these have changed; a file that is damaged is removed and fetched again.
func (c *Cache) Get(ctx context.Context, id Identity, source Source) (*Use, error) {
	if err := id.checkHere(); err != nil {
		return nil, err
	}
	use, err := c.get(ctx, id, source)
	if err != nil {
		return nil, fmt.Errorf("the program %s from %s: %w", id.Name, source.Name, err)
	}
	return use, nil
}

func (c *Cache) get(ctx context.Context, id Identity, source Source) (*Use, error) {
	switch {
	case ctx.Err() != nil:
		return nil, context.Cause(ctx)
	case id.Size <= 0:
		return nil, fmt.Errorf("no program has %d bytes", id.Size)
	case id.Size > c.maxBytes:
		return nil, &SpaceError{Needed: id.Size, Available: c.maxBytes, Where: "the whole cache in " + c.dir}
	}
	key := flightKey{program: nameOf(id), source: source.Name}
	f, err := c.board(ctx, key, id, source)
	if err != nil {
		return nil, err
	}
	select {
	case <-f.landed:
	case <-ctx.Done():
		if c.leave(key, f) {
			return nil, context.Cause(ctx)
		}
		<-f.landed // at the same moment
	}
	if f.err != nil {
		return nil, f.err
	}
	return &Use{held: f.held}, nil
}

// flightKey is what callers of Get have in common if they share a flight.
type flightKey struct {
	program string
	source  string
}

// flight is one way of a program to its callers, which a goroutine goes for all of them.
type flight struct {
	cancel  context.CancelCauseFunc
	waiting int32 // how many callers
	over    bool  // the result is there, for those that wait
	// landed is closed when held, or err, is set.
	landed chan struct{}
	held   *held
	err    error
}

// board joins the flight of a key, or begins one.
func (c *Cache) board(ctx context.Context, key flightKey, id Identity, source Source) (*flight, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, ErrClosed
	}
	f := c.flights[key]
	if f == nil {
		// It may outlive this caller.
		flying, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
		f = &flight{cancel: cancel, landed: make(chan struct{})}
		c.flights[key] = f
		c.flying.Go(func() {
			held, err := c.obtain(flying, id, source)
			c.land(key, f, held, err)
		})
	}
	f.waiting++
	return f, nil
}

// leave returns false if the flight is over. The last caller ends it; callers that come later begin
// another one.
func (c *Cache) leave(key flightKey, f *flight) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if f.over {
		return false
	}
	f.waiting--
	if f.waiting == 0 {
		f.cancel(context.Canceled)
		delete(c.flights, key)
	}
	return true
}

// land passes the result to the callers that wait.
func (c *Cache) land(key flightKey, f *flight, held *held, err error) {
	c.mu.Lock()
	f.over = true
	if c.flights[key] == f {
		delete(c.flights, key)
	}
	waiting := f.waiting
	c.mu.Unlock()
	f.cancel(nil)
	if held != nil {
		held.users.Store(waiting)
		if waiting == 0 {
			held.release()
		}
	}
	f.held, f.err = held, err
	close(f.landed)
}

// exclusive calls do while no other goroutine or process changes which files the directory has. It
// blocks for the moments that they take.
func (c *Cache) exclusive(ctx context.Context, do func() error) error {
	select {
	case c.section <- struct{}{}:
		defer func() { <-c.section }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	lock, err := rundir.AcquireLock(ctx, c.path(directoryLock))
	if err != nil {
		return err
	}
	return errors.Join(do(), lock.Release())
}

// hold locks a program's file, and records its use. The result is nil if there is none. It needs
// exclusive: the lock is not free only while another process removes the file.
func (c *Cache) hold(id Identity) (*held, error) {
	path := c.path(nameOf(id))
	file, stamp, err := openRegular(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil //nolint:nilnil // see above
	case err != nil:
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if err := unix.Flock(int(file.Fd()), unix.LOCK_SH|unix.LOCK_NB); err != nil {
		return nil, errors.Join(&fs.PathError{Op: "lock", Path: path, Err: err}, file.Close())
	}
	touch(path)
	return &held{file: file, stamp: stamp}, nil
}

// find returns a program that is complete, verified. The result is nil if there is none. One that
// is damaged is removed.
func (c *Cache) find(ctx context.Context, id Identity) (*held, error) {
	var h *held
	err := c.exclusive(ctx, func() (err error) {
		h, err = c.hold(id)
		return err
	})
	if err != nil || h == nil {
		return nil, err
	}
	if c.verify(ctx, h, id) {
		return h, nil
	}
	defer h.release()
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	return nil, c.exclusive(ctx, func() error {
		if !isAt(h.file) {
			return nil // another process has removed it
		}
		return os.Remove(h.file.Name())
	})
}

// verify reports whether a file has the content that it should have, and can be executed. One that
// can't be read is damaged too.
func (c *Cache) verify(ctx context.Context, h *held, id Identity) bool {
	info, err := h.file.Stat()
	if err != nil || info.Size() != id.Size {
		return false
	}
	// The mode shows that the transfer was complete.
	if known, ok := c.sums.get(h.stamp); ok && known == id.SHA256 && info.Mode().Perm() == programMode {
		return true
	}
	sum := newHash()
	if _, err := copyHash(ctx, sum, h.file); err != nil || sumOf(sum) != id.SHA256 || h.file.Chmod(programMode) != nil {
		return false
	}
	c.sums.put(h.stamp, id.SHA256)
	return true
}

// isAt reports whether an open file is the one at its path.
func isAt(file *os.File) bool {
	held, err := file.Stat()
	if err != nil {
		return false
	}
	there, err := os.Lstat(file.Name())
	return err == nil && os.SameFile(held, there)
}

// nameOf returns the name of a program's file.
func nameOf(id Identity) string { return hex.EncodeToString(id.SHA256[:]) }

// transferName is the name, without suffix, of the files of a program's transfer. It contains the
// size, so that other processes know what there will be.
func transferName(id Identity) string { return nameOf(id) + "-" + strconv.FormatInt(id.Size, 10) }

func (c *Cache) path(name string) string { return filepath.Join(c.dir, name) }

// makePrivate creates a directory that only this user can access, and refuses another one. Nor may
// others be able to rename it: a program is executed by its path.
func makePrivate(dir string) error {
	if err := os.MkdirAll(dir, directoryMode); err != nil {
		return err
	}
	var own, parent unix.Stat_t
	if err := unix.Lstat(dir, &own); err != nil {
		return &fs.PathError{Op: "stat", Path: dir, Err: err}
	}
	folder := filepath.Dir(dir)
	if err := unix.Stat(folder, &parent); err != nil {
		return &fs.PathError{Op: "stat", Path: folder, Err: err}
	}
	user := os.Geteuid()
	switch {
	case own.Mode&unix.S_IFMT != unix.S_IFDIR:
		return errors.New("it is not a directory")
	case int(own.Uid) != user:
		return fmt.Errorf("it belongs to user %d, not to %d", own.Uid, user)
	case own.Mode&0o077 != 0:
		return fmt.Errorf("its mode is %#o, so that others can access it; run: chmod 700 %s", own.Mode&0o777, dir)
	case int(parent.Uid) != user && parent.Uid != 0, parent.Mode&0o022 != 0 && parent.Mode&unix.S_ISVTX == 0:
		return fmt.Errorf("others can rename it: %s belongs to user %d and has the mode %#o", folder, parent.Uid, parent.Mode&0o7777)
	}
	return nil
}
