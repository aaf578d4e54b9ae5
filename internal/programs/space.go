package programs

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/raylink/raylink/runtime/rundir"
)

// partialLife is how long a partial file stays after its transfer was interrupted, if its space is
// not needed: long enough for a machine to be repaired.
const partialLife = 24 * time.Hour

// entry is a file that counts in the bound.
type entry struct {
	name string
	// transfer is the name of the transfer whose partial file, or lock, it is; empty for a complete
	// program.
	transfer string
	// size is how much of the bound it has: for a partial file, what it will have; none for a lock,
	// which a process that was killed has left.
	size int64
	// used is when it was last used, or written.
	used time.Time
}

// makeRoom removes files until there is room for a program, besides its own partial file, if there
// is one. If there can't be enough, nothing is removed. It needs exclusive.
func (c *Cache) makeRoom(id Identity) error {
	entries, err := c.entries()
	if err != nil {
		return err
	}
	entries = slices.DeleteFunc(entries, func(e entry) bool { return e.transfer == transferName(id) })
	leaving, free, err := c.choose(entries, c.maxBytes-id.Size)
	if err == nil && free < 0 {
		err = &SpaceError{
			Needed: id.Size, Available: free + id.Size,
			Where: fmt.Sprintf("the cache of %d bytes in %s, without what is in use,", c.maxBytes, c.dir),
		}
	}
	return finish(leaving, err)
}

// trim removes what exceeds the bound, and partial files that were abandoned. It needs exclusive.
func (c *Cache) trim() error {
	entries, err := c.entries()
	if err != nil {
		return err
	}
	leaving, _, err := c.choose(entries, c.maxBytes)
	return finish(leaving, err)
}

// leaver is a file that is going to be removed, locked against use.
type leaver struct {
	path    string
	release func() error
}

// finish removes files and releases their locks, or only does that if there was an error.
func finish(leaving []leaver, err error) error {
	failed := err != nil
	for _, l := range leaving {
		if !failed { // a transfer that fails removes its own file, which may have been there a moment ago
			if gone := os.Remove(l.path); !errors.Is(gone, fs.ErrNotExist) {
				err = errors.Join(err, gone)
			}
		}
		err = errors.Join(err, l.release())
	}
	return err
}

// choose locks the files to be removed so that the others have at most a number of bytes: abandoned
// ones, and then the least recently used. Those in use are passed over. It returns how many bytes
// are free then; fewer than 0 if that is not enough.
func (c *Cache) choose(entries []entry, most int64) (leaving []leaver, free int64, err error) {
	free = most
	for _, e := range entries {
		free -= e.size
	}
	abandoned := func(e entry) bool { return e.transfer != "" && time.Since(e.used) > partialLife }
	slices.SortFunc(entries, func(a, b entry) int { return a.used.Compare(b.used) })
	for _, e := range entries {
		if free >= 0 && !abandoned(e) {
			continue
		}
		l, err := c.lockUnused(e)
		switch {
		case errors.Is(err, rundir.ErrLocked):
		case err != nil:
			return leaving, free, err
		default:
			leaving = append(leaving, l)
			free += e.size
		}
	}
	return leaving, free, nil
}

// lockUnused locks a file that is going to be removed. The error is rundir.ErrLocked if it is in
// use.
func (c *Cache) lockUnused(e entry) (leaver, error) {
	path := c.path(e.name)
	if e.transfer != "" {
		lock, err := rundir.TryLock(c.path(e.transfer + lockSuffix))
		if err != nil {
			return leaver{}, err
		}
		if path == lock.Path() {
			return leaver{path: path, release: lock.Release}, nil
		}
		return leaver{path: path, release: func() error { return errors.Join(os.Remove(lock.Path()), lock.Release()) }}, nil
	}
	file, _, err := openRegular(path)
	if err != nil {
		return leaver{}, err
	}
	err = unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		err = rundir.ErrLocked
	}
	if err != nil {
		return leaver{}, errors.Join(&fs.PathError{Op: "lock", Path: path, Err: err}, file.Close())
	}
	return leaver{path: path, release: func() error {
		_ = unix.Flock(int(file.Fd()), unix.LOCK_UN) // see held.release
		return file.Close()
	}}, nil
}

// entries returns the files that count. Others in the directory are left alone.
func (c *Cache) entries() ([]entry, error) {
	files, err := os.ReadDir(c.dir)
	if err != nil {
		return nil, err
	}
	var entries []entry
	for _, file := range files {
		e, ok := parseName(file.Name())
		if !ok {
			continue
		}
		var stat unix.Stat_t
		switch err := unix.Lstat(c.path(e.name), &stat); {
		case errors.Is(err, unix.ENOENT):
			continue // a transfer that failed has removed it
		case err != nil:
			return nil, &fs.PathError{Op: "stat", Path: c.path(e.name), Err: err}
		}
		e.used = time.Unix(0, stat.Mtim.Nano())
		if e.transfer == "" {
			e.size, e.used = stat.Size, time.Unix(0, stat.Atim.Nano())
		}
		entries = append(entries, e)
	}
	return entries, nil
}

// parseName is the inverse of nameOf and transferName.
func parseName(name string) (e entry, ok bool) {
	e.name = name
	program, rest, isTransfer := strings.Cut(name, "-")
	if sum, err := hex.DecodeString(program); err != nil || len(sum) != sha256.Size {
		return e, false
	}
	if !isTransfer {
		return e, true
	}
	digits, isPartial := strings.CutSuffix(rest, partialSuffix)
	if !isPartial {
		if digits, ok = strings.CutSuffix(rest, lockSuffix); !ok {
			return e, false
		}
	}
	size, err := strconv.ParseInt(digits, 10, 64)
	e.transfer = program + "-" + digits
	if isPartial {
		e.size = size
	}
	return e, err == nil && size > 0
}
