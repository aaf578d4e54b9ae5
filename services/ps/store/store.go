// Package store keeps parameters where all processes of a machine can map them.
//
// A store is a directory with one writer, the machine's officer, and any number of readers. Each version of each tag is a
// file of its own, which is written under another name, moved into its place when it is whole, and never changed again; then the
// tag's index, a mapped page, gets its id. So a reader
//
//   - learns of a new version by loading one word;
//   - reads a version in place, without a copy, for as long as it likes: the kernel keeps a mapped file's pages when the
//     file is removed, so that no number of pushes can overwrite what somebody reads;
//   - never sees a mixture of versions, and never goes back to an older one.
//
// The newest version of a tag, and a few before it, have files; see [Options]. The memory of older ones lives as long as
// somebody has them mapped, and belongs to nobody when their readers have died.
//
// Open makes or takes over a store, for its officer. [NewReader] reads one.
package store

import (
	"errors"
	"fmt"
	"hash/crc32"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"google.golang.org/protobuf/proto"

	psv1 "github.com/raylink/raylink/gen/raylink/ps/v1"
	"github.com/raylink/raylink/services/internal/mapfile"
)

// What a caller may decide by. They come wrapped: compare with [errors.Is].
var (
	// ErrUnsupported is a store on a system that lacks what it needs.
	ErrUnsupported = mapfile.ErrUnsupported
	// ErrTaken is a store that has an officer already.
	ErrTaken = errors.New("another officer has the directory")
	// ErrClosed is the use of what was closed.
	ErrClosed = errors.New("the parameter store is closed")
	// ErrNoVersion is a tag under which nothing was stored.
	ErrNoVersion = errors.New("nothing was pushed under the tag")
	// ErrVersion is a version that a store can't take.
	ErrVersion = errors.New("impossible version")
	// ErrFormat is a file that is damaged, or that another version of this program made.
	ErrFormat = errors.New("not a usable parameter file")
	// ErrOtherMachine is a store whose memory is another machine's, or this one's before it was last started.
	ErrOtherMachine = errors.New("the parameters were mapped on another machine, or before this one was last started")
)

// Options says how a store is kept. The zero Options are the defaults.
type Options struct {
	// Held is how many versions before the newest one keep their files, for readers that are between learning of a version and
	// mapping it. By default 2.
	Held int
	// MaxBytes is the size of the largest parameters that are taken. By default 1 GiB.
	MaxBytes uint64
	// MaxTags is how many tags there may be. By default 1024.
	MaxTags int
}

// Filled are the options with the defaults filled in.
func (o Options) Filled() Options {
	if o.Held <= 0 {
		o.Held = 2
	}
	if o.MaxBytes == 0 {
		o.MaxBytes = 1 << 30
	}
	if o.MaxTags <= 0 {
		o.MaxTags = 1024
	}
	return o
}

// Store is an officer's side of a store. Its methods may be called from any goroutine.
type Store struct {
	directory string
	options   Options
	lock      *os.File

	// mu guards the fields below, and is held only for short.
	mu     sync.Mutex
	closed bool
	tags   map[string]*tag
}

// tag is what a store knows of one.
type tag struct {
	directory string
	// mu is held while a version is written.
	mu    sync.Mutex
	index index
	// newest is nil before the first version. It is written with the store's mu held as well.
	newest *psv1.Version
	// last is the id that the next version must be above: the newest one's, or one that an officer before had acknowledged and
	// whose file somebody has damaged or removed since.
	last uint64
}

// lockName is the file that the officer's lock is on.
const lockName = "officer.lock"

// Open makes a store in a directory, or takes over what is there: what a dead officer had acknowledged is still the
// newest. [ErrTaken] says that there is a living one.
func Open(directory string, options Options) (*Store, error) {
	s := &Store{directory: directory, options: options.Filled(), tags: make(map[string]*tag)}
	if err := os.MkdirAll(directory, 0o700); err != nil {
		return nil, fmt.Errorf("open parameter store: %w", err)
	}
	if err := s.take(); err != nil {
		return nil, fmt.Errorf("open parameter store %s: %w", directory, err)
	}
	if err := s.adopt(); err != nil {
		return nil, fmt.Errorf("open parameter store %s: %w", directory, errors.Join(err, s.Close()))
	}
	return s, nil
}

// take takes the officer's lock.
func (s *Store) take() error {
	lock, err := os.OpenFile(filepath.Join(s.directory, lockName), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	if err := mapfile.Lock(lock, 0); err != nil {
		if errors.Is(err, mapfile.ErrLocked) {
			err = ErrTaken
		}
		return errors.Join(err, lock.Close())
	}
	s.lock = lock
	return nil
}

// adopt takes over the tags of an officer before.
func (s *Store) adopt() error {
	entries, err := os.ReadDir(s.directory)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		name, ok := tagOf(entry.Name())
		if !entry.IsDir() || !ok {
			continue
		}
		t := &tag{directory: filepath.Join(s.directory, entry.Name())}
		if err := t.adopt(name); err != nil {
			return fmt.Errorf("adopt tag %q: %w", name, err)
		}
		s.tags[name] = t
	}
	return nil
}

// adopt finds a tag's newest whole version, and removes what is newer: the rest of an officer that died while it wrote.
func (t *tag) adopt(name string) error {
	ids, err := t.files()
	if err != nil {
		return err
	}
	for _, id := range slices.Backward(ids) {
		version, err := verified(t.directory, name, id)
		if err == nil {
			t.newest = version
			break
		}
		if !errors.Is(err, ErrFormat) {
			return err
		}
		if err := os.Remove(versionPath(t.directory, id)); err != nil {
			return err
		}
	}
	t.index, err = openIndex(t.directory)
	if err != nil {
		return err
	}
	t.last = max(t.newest.GetId(), t.index.id().Load()) // what readers have seen never goes back
	t.index.id().Store(t.last)
	return nil
}

// files are the ids of the versions that have files, in order. What was only begun is removed.
func (t *tag) files() ([]uint64, error) {
	entries, err := os.ReadDir(t.directory)
	if err != nil {
		return nil, err
	}
	var ids []uint64
	for _, entry := range entries {
		if id, ok := idOf(entry.Name()); ok {
			ids = append(ids, id)
		} else if strings.HasSuffix(entry.Name(), begunSuffix) {
			if err := os.Remove(filepath.Join(t.directory, entry.Name())); err != nil {
				return nil, err
			}
		}
	}
	slices.Sort(ids)
	return ids, nil
}

// Put stores a version, and says whether it did: one that is not newer than the newest changes nothing. The version's size and
// checksum are found here, and must be right where they are given.
func (s *Store) Put(version *psv1.Version, parameters []byte) (bool, error) {
	version, err := s.completed(version, parameters)
	if err != nil {
		return false, err
	}
	t, err := s.tag(version.GetTag())
	if err != nil {
		return false, fmt.Errorf("store parameters %q: %w", version.GetTag(), err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.index.page == nil {
		return false, ErrClosed
	}
	if version.GetId() <= t.last && guarded {
		return false, nil
	}
	if err := t.put(version, parameters); err != nil {
		return false, fmt.Errorf("store parameters %q: %w", version.GetTag(), err)
	}
	s.mu.Lock()
	t.newest = version
	s.mu.Unlock()
	return true, t.removeOld(s.options.Held)
}

// completed checks a version, and gives a copy of it with its size and checksum.
func (s *Store) completed(version *psv1.Version, parameters []byte) (*psv1.Version, error) {
	size, sum := uint64(len(parameters)), Checksum(parameters)
	switch {
	case version.GetId() == 0:
		return nil, fmt.Errorf("%w: it has no id", ErrVersion)
	case size > s.options.MaxBytes:
		return nil, fmt.Errorf("%w: %d bytes, and at most %d are taken", ErrVersion, size, s.options.MaxBytes)
	case version.GetSize() != 0 && version.GetSize() != size:
		return nil, fmt.Errorf("%w: it should have %d bytes, and has %d", ErrVersion, version.GetSize(), size)
	case version.GetChecksum() != 0 && version.GetChecksum() != sum:
		return nil, fmt.Errorf("%w: its bytes are damaged: their checksum is %08x, not %08x", ErrVersion, sum, version.GetChecksum())
	}
	if err := CheckTag(version.GetTag()); err != nil {
		return nil, err
	}
	version = proto.CloneOf(version)
	version.Size, version.Checksum = size, sum
	if n := proto.Size(version); n > MaxDescription {
		return nil, fmt.Errorf("%w: its info has more than %d bytes", ErrVersion, MaxDescription)
	}
	return version, nil
}

// tag finds a tag, or makes it.
func (s *Store) tag(name string) (*tag, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, ErrClosed
	}
	if t, ok := s.tags[name]; ok {
		return t, nil
	}
	if len(s.tags) >= s.options.MaxTags {
		return nil, fmt.Errorf("%w: there are %d tags already", ErrVersion, len(s.tags))
	}
	t := &tag{directory: tagPath(s.directory, name)}
	if err := os.Mkdir(t.directory, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, err
	}
	var err error
	if t.index, err = openIndex(t.directory); err != nil {
		return nil, err
	}
	s.tags[name] = t
	return t, nil
}

// put writes a version's file, and lets readers know.
func (t *tag) put(version *psv1.Version, parameters []byte) error {
	if !guarded {
		t.index.id().Store(version.GetId())
	}
	if err := writeVersion(t.directory, version, parameters); err != nil {
		return err
	}
	t.last = version.GetId()
	t.index.id().Store(t.last)
	return nil
}

// removeOld removes the files of all but the newest version and some before it.
func (t *tag) removeOld(held int) error {
	ids, err := t.files()
	if err != nil {
		return fmt.Errorf("remove old parameters: %w", err)
	}
	for _, id := range ids[:max(0, len(ids)-1-held)] {
		if err := os.Remove(versionPath(t.directory, id)); err != nil {
			return fmt.Errorf("remove old parameters: %w", err)
		}
	}
	return nil
}

// Newest is the newest version of a tag, or nil.
func (s *Store) Newest(name string) *psv1.Version {
	s.mu.Lock()
	defer s.mu.Unlock()
	if t, ok := s.tags[name]; ok {
		return t.newest
	}
	return nil
}

// Last is the id that a tag's next version must be above.
func (s *Store) Last(name string) uint64 {
	s.mu.Lock()
	t, ok := s.tags[name]
	s.mu.Unlock()
	if !ok {
		return 0
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.last
}

// Versions are the newest versions of all tags, sorted by tag. They must not be changed.
func (s *Store) Versions() []*psv1.Version {
	s.mu.Lock()
	defer s.mu.Unlock()
	versions := make([]*psv1.Version, 0, len(s.tags))
	for _, t := range s.tags {
		if t.newest != nil {
			versions = append(versions, t.newest)
		}
	}
	slices.SortFunc(versions, func(a, b *psv1.Version) int { return strings.Compare(a.GetTag(), b.GetTag()) })
	return versions
}

// Directory is where the store is.
func (s *Store) Directory() string { return s.directory }

// Close ends the officer's part. The parameters stay where they are: for readers, and for the next officer.
func (s *Store) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	tags := slices.Collect(maps.Values(s.tags))
	s.mu.Unlock()
	errs := make([]error, 0, len(tags)+1)
	for _, t := range tags {
		t.mu.Lock() // a version that is being written is finished
		errs = append(errs, t.index.close())
		t.mu.Unlock()
	}
	return errors.Join(append(errs, s.lock.Close())...)
}

// Remove deletes a closed store's directory. Who has parameters mapped keeps them.
func (s *Store) Remove() error {
	if err := os.RemoveAll(s.directory); err != nil {
		return fmt.Errorf("remove parameter store: %w", err)
	}
	return nil
}

// Checksum is the CRC-32C of parameters.
func Checksum(parameters []byte) uint32 {
	return crc32.Checksum(parameters, crc32.MakeTable(crc32.Castagnoli))
}
