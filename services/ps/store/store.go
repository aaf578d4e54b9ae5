// Package store keeps parameters in files that all processes of a machine can map.
//
// A store is a directory with one writer, the machine's officer, and any number of readers. Each
// version of a tag is a file of its own. It is written under a temporary name, renamed once it is
// complete, and never modified afterwards. Then its id is stored in the tag's index, a mapped page.
// So a reader
//
//   - detects a new version by loading one word;
//   - reads a version in place, without a copy, for as long as it likes: the kernel keeps a mapped
//     file's pages when the file is removed, so no number of pushes can overwrite what is being
//     read;
//   - never sees a mixture of versions, and never goes back to an older one.
//
// Files exist for the newest version of a tag and a few before it; see [Options]. The memory of
// older versions is freed when the last reader unmaps it or dies.
//
// [Open] creates or takes over a store, for its officer. [NewReader] reads one.
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

// Errors that a caller may act on. They are returned wrapped: compare with [errors.Is].
var (
	// ErrUnsupported means that the operating system lacks what stores need.
	ErrUnsupported = mapfile.ErrUnsupported
	// ErrInUse means that another officer has the store open.
	ErrInUse = errors.New("another officer has the directory open")
	// ErrClosed means that the store or reader was closed.
	ErrClosed = errors.New("the parameter store is closed")
	// ErrNoVersion means that nothing was stored under a tag.
	ErrNoVersion = errors.New("nothing was pushed under the tag")
	// ErrVersion means that a version is invalid or exceeds the store's limits.
	ErrVersion = errors.New("invalid version")
	// ErrFormat means that a file is damaged or has another format version.
	ErrFormat = errors.New("not a valid parameter file")
	// ErrOtherMachine means that the store was mapped on another machine, or before this one was
	// last booted.
	ErrOtherMachine = errors.New("the parameters were mapped on another machine, or before this one was last booted")
)

// Options configures a store. The zero value selects the defaults.
type Options struct {
	// Held is how many versions before the newest one keep their files, for readers that have
	// loaded an id and not yet mapped its version. Default: 2.
	Held int
	// MaxBytes is the maximum size of parameters. Default: 1 GiB.
	MaxBytes uint64
	// MaxTags is the maximum number of tags. Default: 1024.
	MaxTags int
}

// WithDefaults returns the options with unset fields replaced by their defaults.
func (o Options) WithDefaults() Options {
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

// Store is the officer's side of a store. It is safe for concurrent use.
type Store struct {
	directory string
	options   Options
	lock      *os.File

	// mu guards the fields below. It is never held during I/O of parameters.
	mu     sync.Mutex
	closed bool
	tags   map[string]*tag
}

// tag is the state of one tag.
type tag struct {
	directory string
	// mu is held while a version is written.
	mu    sync.Mutex
	index index
	// newest is nil before the first version. Writing it requires the store's mu as well.
	newest *psv1.Version
	// last is the id that the next version must exceed: that of the newest version, or one that a
	// previous officer acknowledged and whose file was damaged or removed since.
	last uint64
}

// lockName is the file that the officer locks.
const lockName = "officer.lock"

// Open creates a store in a directory, or takes over an existing one: versions that a previous
// officer acknowledged are preserved. It returns [ErrInUse] if that officer is alive.
func Open(directory string, options Options) (*Store, error) {
	s := &Store{directory: directory, options: options.WithDefaults(), tags: make(map[string]*tag)}
	if err := os.MkdirAll(directory, 0o700); err != nil {
		return nil, fmt.Errorf("open parameter store: %w", err)
	}
	if err := s.acquireLock(); err != nil {
		return nil, fmt.Errorf("open parameter store %s: %w", directory, err)
	}
	if err := s.loadTags(); err != nil {
		return nil, fmt.Errorf("open parameter store %s: %w", directory, errors.Join(err, s.Close()))
	}
	return s, nil
}

// acquireLock acquires the officer's lock.
func (s *Store) acquireLock() error {
	lock, err := os.OpenFile(filepath.Join(s.directory, lockName), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	if err := mapfile.Lock(lock, 0); err != nil {
		if errors.Is(err, mapfile.ErrLocked) {
			err = ErrInUse
		}
		return errors.Join(err, lock.Close())
	}
	s.lock = lock
	return nil
}

// loadTags loads the tags that a previous officer left.
func (s *Store) loadTags() error {
	entries, err := os.ReadDir(s.directory)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		name, ok := parseTagDirectory(entry.Name())
		if !entry.IsDir() || !ok {
			continue
		}
		t := &tag{directory: filepath.Join(s.directory, entry.Name())}
		if err := t.load(name); err != nil {
			return fmt.Errorf("load tag %q: %w", name, err)
		}
		s.tags[name] = t
	}
	return nil
}

// load finds a tag's newest complete version. It removes the incomplete files of an officer that
// died during a write.
func (t *tag) load(name string) error {
	ids, err := t.files()
	if err != nil {
		return err
	}
	for _, id := range slices.Backward(ids) {
		version, err := verifyVersion(t.directory, name, id)
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
	t.last = max(t.newest.GetId(), t.index.id().Load()) // readers never see ids decrease
	t.index.id().Store(t.last)
	return nil
}

// files returns the ids of the versions that have files, in ascending order. It removes temporary
// files.
func (t *tag) files() ([]uint64, error) {
	entries, err := os.ReadDir(t.directory)
	if err != nil {
		return nil, err
	}
	var ids []uint64
	for _, entry := range entries {
		if id, ok := parseVersionFile(entry.Name()); ok {
			ids = append(ids, id)
		} else if strings.HasSuffix(entry.Name(), tempSuffix) {
			if err := os.Remove(filepath.Join(t.directory, entry.Name())); err != nil {
				return nil, err
			}
		}
	}
	slices.Sort(ids)
	return ids, nil
}

// Put stores a version and reports whether it did: a version that is not newer than the newest one
// changes nothing. Put computes the version's size and checksum; if they are set already, they must
// be correct.
func (s *Store) Put(version *psv1.Version, parameters []byte) (bool, error) {
	version, err := s.validated(version, parameters)
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
	if version.GetId() <= t.last {
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

// validated checks a version and returns a copy with its size and checksum.
func (s *Store) validated(version *psv1.Version, parameters []byte) (*psv1.Version, error) {
	size, sum := uint64(len(parameters)), Checksum(parameters)
	switch {
	case version.GetId() == 0:
		return nil, fmt.Errorf("%w: no id", ErrVersion)
	case size > s.options.MaxBytes:
		return nil, fmt.Errorf("%w: %d bytes exceed the limit of %d", ErrVersion, size, s.options.MaxBytes)
	case version.GetSize() != 0 && version.GetSize() != size:
		return nil, fmt.Errorf("%w: it has %d bytes instead of %d", ErrVersion, size, version.GetSize())
	case version.GetChecksum() != 0 && version.GetChecksum() != sum:
		return nil, fmt.Errorf("%w: the parameters are damaged: checksum %08x instead of %08x", ErrVersion, sum, version.GetChecksum())
	}
	if err := CheckTag(version.GetTag()); err != nil {
		return nil, err
	}
	version = proto.CloneOf(version)
	version.Size, version.Checksum = size, sum
	if n := proto.Size(version); n > MaxDescription {
		return nil, fmt.Errorf("%w: tag and info exceed %d bytes", ErrVersion, MaxDescription)
	}
	return version, nil
}

// tag returns a tag, and creates it if necessary.
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
		return nil, fmt.Errorf("%w: the limit of %d tags is reached", ErrVersion, len(s.tags))
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

// put writes a version's file, then publishes its id to readers.
func (t *tag) put(version *psv1.Version, parameters []byte) error {
	if err := writeVersion(t.directory, version, parameters); err != nil {
		return err
	}
	t.last = version.GetId()
	t.index.id().Store(t.last)
	return nil
}

// removeOld removes all files but those of the newest version and of held versions before it.
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

// Newest returns the newest version of a tag, or nil. It must not be modified.
func (s *Store) Newest(name string) *psv1.Version {
	s.mu.Lock()
	defer s.mu.Unlock()
	if t, ok := s.tags[name]; ok {
		return t.newest
	}
	return nil
}

// Last returns the id that a tag's next version must exceed.
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

// Versions returns the newest version of each tag, sorted by tag. They must not be modified.
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

// Directory returns the store's directory.
func (s *Store) Directory() string { return s.directory }

// Close closes the officer's side. The files remain, for readers and for the next officer.
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
		t.mu.Lock() // waits for a write in progress
		errs = append(errs, t.index.close())
		t.mu.Unlock()
	}
	return errors.Join(append(errs, s.lock.Close())...)
}

// Remove deletes the directory of a closed store. Readers keep what they have mapped.
func (s *Store) Remove() error {
	if err := os.RemoveAll(s.directory); err != nil {
		return fmt.Errorf("remove parameter store: %w", err)
	}
	return nil
}

// Checksum returns the CRC-32C of parameters.
func Checksum(parameters []byte) uint32 {
	return crc32.Checksum(parameters, crc32.MakeTable(crc32.Castagnoli))
}
