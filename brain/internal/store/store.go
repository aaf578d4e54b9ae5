// Package store keeps the registry on disk: a set of entries in Pebble, changed in atomic groups.
//
// What [Store.Commit] has acknowledged survives the process being killed, and with a file system
// that honours fsync the machine losing power. A commit that fails ends the store for good: nobody
// can say what of it is on disk, and whoever went on would acknowledge on top of that. The owner
// ends, and a new [Open] shows what is there.
//
// One process at a time may have a directory open. Start with [Open].
package store

import (
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"strconv"
	"sync"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/atomicfs"

	"github.com/raylink/raylink/brain/internal/tree"
)

const (
	// format is the version of what the entries mean. A store of a newer one is not opened; for an
	// older one this is where a migration goes.
	format = 1

	keyFormat = "m/format"
	keyMeta   = "m/"
	keyEntry  = "e/"
	endEntry  = "e0" // '0' follows '/'
)

// Options configures a store.
type Options struct {
	// Dir is the directory. It is made if it doesn't exist, for the user alone.
	Dir string
	// FS is where Dir is. Nil means the operating system's; [vfs.NewMem] makes a store that ends
	// with its process.
	FS vfs.FS
	// Logger gets what Pebble has to say. Not nil.
	Logger *slog.Logger
}

// InUseError says that another process, or another store of this one, has the directory open.
type InUseError struct {
	Dir string
	// PID is the other process, 0 where it is not known.
	PID int
	err error
}

// Error implements error.
func (e *InUseError) Error() string {
	if e.PID != 0 {
		return fmt.Sprintf("the directory %s is in use by another Brain (pid %d)", e.Dir, e.PID)
	}
	return fmt.Sprintf("the directory %s is in use by another Brain", e.Dir)
}

// Unwrap gives what the file system said.
func (e *InUseError) Unwrap() error { return e.err }

// FormatError says that the directory was written by a version of this program that this one
// doesn't understand.
type FormatError struct {
	Dir string
	// Format is the version that was found, Known the newest that this program understands.
	Format, Known uint64
	// Files says that it is the format of Pebble's files, not that of what the entries mean.
	Files bool
}

// Error implements error.
func (e *FormatError) Error() string {
	what := "format"
	if e.Files {
		what = "files of the format"
	}
	return fmt.Sprintf("the directory %s has %s %d, and this program knows formats up to %d: it was written by a newer version; "+
		"use that, or another directory",
		e.Dir, what, e.Format, e.Known)
}

// Store is an open directory. Its methods may be called from any goroutine; commits go one after
// the other.
type Store struct {
	dir  string
	db   *pebble.DB
	lock *pebble.Lock

	// commit lets one commit at a time into Pebble, and holds Close back meanwhile.
	commit sync.Mutex
	closed bool
	// stuck: a commit panicked inside Pebble, which still holds its locks; closing would wait for
	// ever.
	stuck bool

	mu     sync.Mutex // guards failed
	failed error
}

// Open opens a directory, or makes a new one.
func Open(opts Options) (*Store, error) {
	fs := opts.FS
	if fs == nil {
		fs = vfs.Default
	}
	if err := fs.MkdirAll(opts.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the directory %s: %w", opts.Dir, err)
	}
	lock, err := pebble.LockDirectory(opts.Dir, fs)
	if err != nil {
		return nil, lockError(opts.Dir, err)
	}
	if err := checkFiles(fs, opts.Dir); err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	s := &Store{dir: opts.Dir, lock: lock}
	s.db, err = pebble.Open(opts.Dir, &pebble.Options{
		FS:                 fs,
		Lock:               lock,
		Logger:             logger{store: s, log: opts.Logger},
		FormatMajorVersion: pebble.FormatNewest,
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open the directory %s: %w", opts.Dir, err), lock.Close())
	}
	if err := s.checkFormat(); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// checkFiles refuses files of a later Pebble, before anything is touched: Pebble itself says no
// more than that it doesn't know the number.
func checkFiles(fs vfs.FS, dir string) error {
	found, err := atomicfs.ReadMarker(fs, dir, "format-version")
	if err != nil {
		return fmt.Errorf("read the format of the directory %s: %w", dir, err)
	}
	version, err := strconv.ParseUint(found, 10, 64)
	if err == nil && version > uint64(pebble.FormatNewest) {
		return &FormatError{Dir: dir, Format: version, Known: uint64(pebble.FormatNewest), Files: true}
	}
	return nil // what is no number Pebble will refuse
}

func (s *Store) checkFormat() error {
	value, err := s.Meta("format")
	switch {
	case err != nil:
		return err
	case value == nil:
		return s.SetMeta("format", []byte{format})
	case len(value) != 1:
		return fmt.Errorf("the directory %s: its format has %d bytes", s.dir, len(value))
	case value[0] > format:
		return &FormatError{Dir: s.dir, Format: uint64(value[0]), Known: format}
	}
	return nil
}

// Meta reads what is kept beside the entries; nil where it isn't there.
func (s *Store) Meta(name string) ([]byte, error) {
	value, closer, err := s.db.Get([]byte(keyMeta + name))
	if errors.Is(err, pebble.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("the directory %s: read %s: %w", s.dir, name, err)
	}
	kept := append([]byte{}, value...)
	if err := closer.Close(); err != nil {
		return nil, fmt.Errorf("the directory %s: read %s: %w", s.dir, name, err)
	}
	return kept, nil
}

// SetMeta writes what is kept beside the entries.
func (s *Store) SetMeta(name string, value []byte) error {
	return s.apply(func(batch *pebble.Batch) error { return batch.Set([]byte(keyMeta+name), value, nil) })
}

// Entries yields all entries, in the order of their keys.
func (s *Store) Entries() iter.Seq2[tree.Write, error] {
	return func(yield func(tree.Write, error) bool) {
		it, err := s.db.NewIter(&pebble.IterOptions{LowerBound: []byte(keyEntry), UpperBound: []byte(endEntry)})
		if err != nil {
			yield(tree.Write{}, fmt.Errorf("the directory %s: read: %w", s.dir, err))
			return
		}
		goOn := true
		for ok := it.First(); ok && goOn; ok = it.Next() {
			value, err := it.ValueAndErr()
			if err != nil {
				break // the iterator keeps it
			}
			goOn = yield(tree.Write{Key: string(it.Key()[len(keyEntry):]), Value: append([]byte{}, value...)}, nil)
		}
		if err := errors.Join(it.Error(), it.Close()); err != nil && goOn {
			yield(tree.Write{}, fmt.Errorf("the directory %s: read: %w", s.dir, err))
		}
	}
}

// Commit makes a group of changes, all or none. When it returns nil they are on disk. Any error is
// final: see the package.
func (s *Store) Commit(writes []tree.Write) error {
	if len(writes) == 0 {
		return s.Err()
	}
	return s.apply(func(batch *pebble.Batch) error {
		for _, w := range writes {
			key := []byte(keyEntry + w.Key)
			var err error
			if w.Value == nil {
				err = batch.Delete(key, nil)
			} else {
				err = batch.Set(key, w.Value, nil)
			}
			if err != nil {
				return fmt.Errorf("write %q: %w", w.Key, err)
			}
		}
		return nil
	})
}

func (s *Store) apply(fill func(*pebble.Batch) error) (err error) {
	s.commit.Lock()
	defer s.commit.Unlock()
	if s.closed {
		return fmt.Errorf("the directory %s is closed", s.dir)
	}
	if err := s.Err(); err != nil {
		return err
	}
	batch := s.db.NewBatch()
	if err := fill(batch); err != nil {
		return errors.Join(err, batch.Close())
	}
	defer func() {
		// A write-ahead log that has failed makes Pebble panic on the next write.
		if p := recover(); p != nil {
			s.stuck = true
			s.fail(fmt.Errorf("commit: %v", p))
		}
		err = s.Err()
	}()
	if err := s.db.Apply(batch, writeOptions()); err != nil {
		s.fail(fmt.Errorf("commit: %w", err))
	}
	// Pebble tells of a failed sync by its logger's Fatalf, and then returns nil: the deferred look
	// at Err is what sees it.
	if s.Err() != nil {
		return nil
	}
	return batch.Close()
}

// Err says why the store has failed; nil while it hasn't.
func (s *Store) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.failed
}

func (s *Store) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failed == nil {
		s.failed = fmt.Errorf("the store in %s has failed: %w", s.dir, err)
	}
}

// Close lets go of the directory.
func (s *Store) Close() error {
	s.commit.Lock()
	defer s.commit.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	if s.stuck {
		return fmt.Errorf("the directory %s stays locked until this process ends: %w", s.dir, s.Err())
	}
	err := errors.Join(s.db.Close(), s.lock.Close())
	if err == nil {
		return nil
	}
	return fmt.Errorf("close the directory %s: %w", s.dir, err)
}
