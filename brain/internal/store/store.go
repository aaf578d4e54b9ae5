// Package store keeps the registry on disk: a set of entries in Pebble, changed in atomic groups.
//
// What [Store.Commit] has acknowledged survives a kill of the process and, with a file system that
// honours fsync, a power failure. A commit that fails ends the store for good: it is unknown what
// of it is on disk, and later commits would build on that. The owner must close the store, and a
// new [Open] shows what is there.
//
// Only one process at a time can open a directory. Start with [Open].
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
	"github.com/raylink/raylink/internal/dirlock"
)

const (
	// format is the version of the entries' meaning. A store with a newer one is refused;
	// migrations of older ones belong here.
	format = 1

	keyFormat = "m/format"
	keyMeta   = "m/"
	keyEntry  = "e/"
	endEntry  = "e0" // '0' follows '/'
)

// Options configures a store.
type Options struct {
	// Dir is the directory. It is created if it does not exist, accessible to the user only.
	Dir string
	// FS is the file system of Dir. Nil means the operating system's; [vfs.NewMem] makes a store
	// that is lost at the end of its process.
	FS vfs.FS
	// Logger receives Pebble's messages. Not nil.
	Logger *slog.Logger
}

// InUseError is the error for a directory that another process, or another store in this one, has
// open.
type InUseError struct {
	Dir string
	// PID is the other process, 0 if it is not known.
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

// Unwrap returns the file system's error.
func (e *InUseError) Unwrap() error { return e.err }

// FormatError is the error for a directory that was written by a version of this program that this
// one does not support.
type FormatError struct {
	Dir string
	// Format is the version that was found, Known the newest that this program supports.
	Format, Known uint64
	// Files is set if it is the format of Pebble's files, rather than that of the entries' meaning.
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

// Store is an open directory. Its methods are safe for concurrent use; commits are serialized.
type Store struct {
	dir  string
	db   *pebble.DB
	lock *pebble.Lock

	// commit serializes commits, and makes Close wait for them.
	commit sync.Mutex
	closed bool
	// stuck is set if a commit has panicked inside Pebble, which still holds its locks; closing it
	// would block for ever.
	stuck bool

	mu     sync.Mutex // guards failed
	failed error
}

// Open opens a directory, or creates it. The caller must Close the store.
func Open(opts Options) (*Store, error) {
	fs := opts.FS
	if fs == nil {
		fs = vfs.Default
	}
	if err := fs.MkdirAll(opts.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the directory %s: %w", opts.Dir, err)
	}
	lock, err := dirlock.Lock(fs, opts.Dir)
	var held *dirlock.HeldError
	switch {
	case errors.As(err, &held):
		return nil, &InUseError{Dir: opts.Dir, PID: held.PID, err: err}
	case err != nil:
		return nil, fmt.Errorf("lock the directory %s: %w", opts.Dir, err)
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

// checkFiles refuses files of a later Pebble before anything is modified, with a clear error:
// Pebble reports only an unknown number.
func checkFiles(fs vfs.FS, dir string) error {
	found, err := atomicfs.ReadMarker(fs, dir, "format-version")
	if err != nil {
		return fmt.Errorf("read the format of the directory %s: %w", dir, err)
	}
	version, err := strconv.ParseUint(found, 10, 64)
	if err == nil && version > uint64(pebble.FormatNewest) {
		return &FormatError{Dir: dir, Format: version, Known: uint64(pebble.FormatNewest), Files: true}
	}
	return nil // Pebble refuses what is not a number
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

// Meta reads a value stored beside the entries; nil if there is none.
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

// SetMeta writes a value beside the entries.
func (s *Store) SetMeta(name string, value []byte) error {
	return s.apply(func(batch *pebble.Batch) error { return batch.Set([]byte(keyMeta+name), value, nil) })
}

// Entries yields all entries in the order of their keys.
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
				break // the iterator keeps the error
			}
			goOn = yield(tree.Write{Key: string(it.Key()[len(keyEntry):]), Value: append([]byte{}, value...)}, nil)
		}
		if err := errors.Join(it.Error(), it.Close()); err != nil && goOn {
			yield(tree.Write{}, fmt.Errorf("the directory %s: read: %w", s.dir, err))
		}
	}
}

// Commit applies a group of changes, all or none. When it returns nil they are on disk. Any error
// is final: see the package comment.
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
		// Pebble panics on the next write after its write-ahead log has failed.
		if p := recover(); p != nil {
			s.stuck = true
			s.fail(fmt.Errorf("commit: %v", p))
		}
		err = s.Err()
	}()
	if err := s.db.Apply(batch, writeOptions()); err != nil {
		s.fail(fmt.Errorf("commit: %w", err))
	}
	// Pebble reports a failed sync to its logger's Fatalf, and then returns nil; the deferred
	// function returns that error.
	if s.Err() != nil {
		return nil
	}
	return batch.Close()
}

// Err is the reason why the store has failed, or nil if it has not.
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

// Close closes the directory.
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
