// Package store keeps parameters in files that all processes of a machine can map.
//
// A store is a directory with one writer, the machine's officer, and any number of readers. Each
// version of a tag is a file of its own. It is written as a draft, and published once it is
// complete: its id is stored in the file, then in the tag's index, a mapped page. So a reader
//
//   - detects a new version by loading one word;
//   - reads a version in place, without a copy, for as long as it likes: it holds the file by a
//     lock that the kernel releases when the process dies;
//   - never sees a mixture of versions, and never goes back to an older one.
//
// The file of an old version that no reader holds becomes the next draft. Readers keep it mapped,
// so neither side pays for page faults. A tag has files for the newest version, for a few before it
// (see [Options]), and for those that readers hold.
//
// A draft is written by the officer, chunk by chunk ([Draft.WriteChunk]), or by another process of
// the machine ([Draft.Lend], [Fill]). A [Source] reads it while it grows.
//
// [Open] creates or takes over a store, for its officer. [NewReader] reads one.
package store

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	psv1 "github.com/raylink/raylink/gen/raylink/ps/v1"
	"github.com/raylink/raylink/services/internal/mapfile"
)

// Errors that a caller may act on. They are returned wrapped: compare with [errors.Is].
var (
	// ErrUnsupported means that the operating system lacks what stores need.
	ErrUnsupported = mapfile.ErrUnsupported
	// ErrInUse means that another officer has the store open.
	ErrInUse = errors.New("another officer has the directory open")
	// ErrClosed means that the store or reader was closed.
	ErrClosed = errors.New("the parameter store is closed")
	// ErrNoVersion means that nothing was stored under a tag or content, or that it was deleted.
	ErrNoVersion = errors.New("nothing was pushed under the tag")
	// ErrVersion means that a version is invalid.
	ErrVersion = errors.New("invalid version")
	// ErrNoRoom means that parameters exceed a bound or what is left of the disk: see [RoomError].
	ErrNoRoom = errors.New("no room")
	// ErrExists means that a content is stored, or being written, already.
	ErrExists = errors.New("the content exists already")
	// ErrDamaged means that a chunk or draft does not match its checksum.
	ErrDamaged = errors.New("the parameters are damaged")
	// ErrDiscarded means that a draft was discarded.
	ErrDiscarded = errors.New("the draft was discarded")
	// ErrBusy means that another process is filling a draft.
	ErrBusy = errors.New("another process is filling the draft")
	// ErrFormat means that a file is damaged or has another format version.
	ErrFormat = errors.New("not a valid parameter file")
	// ErrOtherMachine means that the store was mapped on another machine, or before this one was
	// last booted.
	ErrOtherMachine = errors.New("the parameters were mapped on another machine, or before this one was last booted")
)

// Options configures a store. The zero value selects the defaults.
type Options struct {
	// Held is how many versions before the newest one keep their files, if there is room, for
	// readers that have loaded an id and not yet held its version. One of them becomes the next
	// draft. Default: 2.
	Held int
	// MaxBytes is the maximum size of parameters. Default: 16 GiB.
	MaxBytes uint64
	// MaxTotalBytes is the maximum size of all files together. 0 means that only the file system
	// bounds it.
	MaxTotalBytes uint64
	// MaxTags is the maximum number of tags that have versions. Default: 1024.
	MaxTags int
}

// WithDefaults returns the options with unset fields replaced by their defaults.
func (o Options) WithDefaults() Options {
	if o.Held <= 0 {
		o.Held = 2
	}
	if o.MaxBytes == 0 {
		o.MaxBytes = 16 << 30
	}
	o.MaxBytes = min(o.MaxBytes, maxSize)
	if o.MaxTags <= 0 {
		o.MaxTags = 1024
	}
	return o
}

// Store is the officer's side of a store. It is safe for concurrent use.
type Store struct {
	directory string
	options   Options

	// reaping is held while files are freed.
	reaping sync.Mutex

	// mu guards the fields below. It is never held while parameters are read or written. A draft's
	// mu is acquired before it.
	mu     sync.Mutex
	closed bool
	lock   *os.File
	status []byte
	tags   map[string]*tag
	// files holds the versions and drafts by content; nil for one that is being reserved.
	files  map[string]*file
	drafts map[string]*Draft
	// retired holds the files that are removed and not freed yet, because they are in use.
	retired []*file
	// total is the size of all files.
	total uint64
}

// tag is the state of one tag. The store's mu guards it.
type tag struct {
	name, directory string
	index           []byte
	// versions holds the files in the order of their ids. Unless newest is nil, it is the last one.
	versions []*file
	newest   *file
	// drafts is the number of drafts, including those that are being reserved.
	drafts int
}

// last returns the id that the next version must exceed.
func (t *tag) last() uint64 { return word(t.index, lastAt).Load() }

// late reports whether a version with the given id can't become the newest one.
func (t *tag) late(id uint64) bool {
	return id <= t.last() && id != word(t.index, lostAt).Load()
}

// live reports whether the tag counts as one: a tag that was deleted remains only to continue its
// ids.
func (t *tag) live() bool { return t.newest != nil || t.drafts > 0 }

// Open creates a store in a directory, or takes over an existing one. Versions that a previous
// officer published are preserved, unless the machine was booted since; drafts are removed. Open
// returns [ErrInUse] if that officer is alive.
func Open(directory string, options Options) (*Store, error) {
	s := &Store{
		directory: directory, options: options.WithDefaults(),
		tags: make(map[string]*tag), files: make(map[string]*file), drafts: make(map[string]*Draft),
	}
	var err error
	if s.lock, err = acquireLock(directory); err != nil {
		return nil, fmt.Errorf("open parameter store %s: %w", directory, err)
	}
	if err := s.load(); err != nil {
		return nil, fmt.Errorf("open parameter store %s: %w", directory, errors.Join(err, s.Close()))
	}
	return s, nil
}

// lockTries is how often acquireLock retries because the previous officer removed the directory.
const lockTries = 100

// acquireLock creates the directory if necessary, and acquires the officer's lock.
func acquireLock(directory string) (*os.File, error) {
	var err error
	for range lockTries {
		if err = os.MkdirAll(directory, 0o700); err != nil {
			return nil, err
		}
		var lock *os.File
		lock, err = os.OpenFile(filepath.Join(directory, lockName), os.O_RDWR|os.O_CREATE, 0o600)
		if errors.Is(err, os.ErrNotExist) {
			continue // the directory was removed
		}
		if err != nil {
			return nil, err
		}
		if err := mapfile.Lock(lock, 0); err != nil {
			if errors.Is(err, mapfile.ErrLocked) {
				err = ErrInUse
			}
			return nil, errors.Join(err, lock.Close())
		}
		status, statErr := mapfile.Stat(lock)
		if statErr != nil {
			return nil, errors.Join(statErr, lock.Close())
		}
		if status.Links > 0 {
			return lock, nil
		}
		err = errors.Join(os.ErrNotExist, lock.Close()) // removed before it was locked
	}
	return nil, err
}

// Newest returns the newest version of a tag, or nil. It must not be modified.
func (s *Store) Newest(name string) *psv1.Version {
	s.mu.Lock()
	defer s.mu.Unlock()
	if t, ok := s.tags[name]; ok && t.newest != nil {
		return t.newest.version
	}
	return nil
}

// Last returns the id that a tag's next version must exceed.
func (s *Store) Last(name string) uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if t, ok := s.tags[name]; ok && !s.closed {
		return t.last()
	}
	return 0
}

// Versions returns the newest version of each tag, sorted by tag. They must not be modified.
func (s *Store) Versions() []*psv1.Version {
	s.mu.Lock()
	defer s.mu.Unlock()
	versions := make([]*psv1.Version, 0, len(s.tags))
	for _, t := range s.tags {
		if t.newest != nil {
			versions = append(versions, t.newest.version)
		}
	}
	slices.SortFunc(versions, func(a, b *psv1.Version) int { return strings.Compare(a.GetTag(), b.GetTag()) })
	return versions
}

// Floors returns the highest id of each tag that has no version: it was deleted, or its file was
// damaged.
func (s *Store) Floors() map[string]uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	floors := make(map[string]uint64)
	for name, t := range s.tags {
		if t.newest == nil && !s.closed && t.last() > 0 {
			floors[name] = t.last()
		}
	}
	return floors
}

// Announce publishes the id of the captain's newest version of a tag to readers; see
// [Reader.State].
func (s *Store) Announce(name string, id uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	t, err := s.tag(name)
	if err != nil {
		return fmt.Errorf("announce version %d of parameters %q: %w", id, name, err)
	}
	announce(t.index, id)
	return nil
}

// Confirm publishes that the captain has just confirmed what was announced; see [Reader.State].
func (s *Store) Confirm() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed {
		word(s.status, confirmedAt).Store(uint64(mapfile.Boottime())) //nolint:gosec // positive
	}
}

// Delete removes a tag's versions. Readers keep what they hold. Ids continue above the floor and
// above those that the tag had.
func (s *Store) Delete(name string, floor uint64) error {
	if err := s.deleteTag(name, floor); err != nil {
		return fmt.Errorf("delete parameters %q: %w", name, err)
	}
	return s.reap()
}

func (s *Store) deleteTag(name string, floor uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	t, err := s.tag(name)
	if err != nil {
		return err
	}
	word(t.index, lostAt).Store(0)
	word(t.index, lastAt).Store(max(floor, t.last())) // first: else files of a crash came back
	word(t.index, newestAt).Store(0)
	if word(t.index, announcedAt).Load() <= t.last() {
		word(t.index, announcedAt).Store(0) // it was deleted too: readers are not behind
	}
	setBehind(t.index)
	t.newest = nil
	var errs []error
	for _, f := range t.versions {
		errs = append(errs, s.retire(f))
	}
	t.versions = nil
	return errors.Join(errs...)
}

// Directory returns the store's directory.
func (s *Store) Directory() string { return s.directory }

// Close closes the officer's side, and discards its drafts. The versions remain, for readers and
// for the next officer. What sources returned remains valid until they are released.
func (s *Store) Close() error {
	return errors.Join(s.shut(), s.unlock())
}

// unlock lets another officer open the directory.
func (s *Store) unlock() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	lock := s.lock
	s.lock = nil
	if lock == nil {
		return nil
	}
	// A process that is being started has a copy of the descriptor until it runs its program, so
	// that closing alone would not release the lock at once.
	return errors.Join(mapfile.Unlock(lock, 0), lock.Close())
}

// shut closes all but the lock.
func (s *Store) shut() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	drafts := slices.Collect(maps.Values(s.drafts))
	s.mu.Unlock()
	var errs []error
	for _, d := range drafts {
		errs = append(errs, d.end(ErrClosed))
	}
	errs = append(errs, s.reap())
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range s.retired {
		errs = append(errs, f.closeUnused())
	}
	for _, t := range s.tags {
		for _, f := range t.versions {
			errs = append(errs, f.closeUnused())
		}
		errs = append(errs, mapfile.Unmap(t.index))
		t.index = nil
	}
	errs = append(errs, mapfile.Unmap(s.status))
	return errors.Join(errs...)
}

// closeUnused closes a file, or lets its last source close it. Until then it holds the file, as the
// next officer does not know of the source.
func (f *file) closeUnused() error {
	f.closing = true
	if f.sources > 0 {
		return mapfile.LockShared(f.handle, holdLock)
	}
	return f.close()
}

// Remove closes the store and deletes its directory. Readers keep what they hold. It returns
// [ErrInUse], and changes nothing, if the store was closed and another officer has opened it since.
func (s *Store) Remove() error {
	if err := s.remove(); err != nil {
		return fmt.Errorf("remove parameter store %s: %w", s.directory, err)
	}
	return nil
}

func (s *Store) remove() error {
	s.mu.Lock()
	closed := s.closed
	s.mu.Unlock()
	if closed {
		if _, err := os.Stat(s.directory); err != nil {
			return ignoreMissing(err)
		}
		lock, err := acquireLock(s.directory)
		if err != nil {
			return err
		}
		s.mu.Lock()
		s.lock = lock
		s.mu.Unlock()
	}
	errs := []error{s.shut()}
	entries, err := os.ReadDir(s.directory)
	errs = append(errs, err)
	for _, entry := range entries {
		path := filepath.Join(s.directory, entry.Name())
		if entry.Name() == lockName {
			continue
		}
		if _, ok := parseTagDirectory(entry.Name()); ok {
			errs = append(errs, removeTag(path))
		}
		errs = append(errs, os.RemoveAll(path))
	}
	// The lock is removed last, so that another officer can't open the directory before.
	errs = append(errs, os.Remove(filepath.Join(s.directory, lockName)), s.unlock())
	_ = os.Remove(s.directory) // fails if another officer has just created its lock
	return errors.Join(errs...)
}

// removeTag frees what readers don't hold of a tag, and makes them open the tag again.
func removeTag(directory string) error {
	var errs []error
	if index, err := mapPage(filepath.Join(directory, indexName), indexMagic, mapfile.ReadWrite); err == nil {
		word(index, newestAt).Store(removed)
		errs = append(errs, mapfile.Unmap(index))
	}
	entries, err := os.ReadDir(directory)
	errs = append(errs, err)
	for _, entry := range entries {
		if entry.Name() != indexName {
			errs = append(errs, dropFile(filepath.Join(directory, entry.Name())))
		}
	}
	return errors.Join(errs...)
}
