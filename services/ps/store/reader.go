package store

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	psv1 "github.com/raylink/raylink/gen/raylink/ps/v1"
	"github.com/raylink/raylink/services/internal/mapfile"
)

// Reader follows one tag of a store from any process of the machine. It is safe for concurrent use.
type Reader struct {
	store, directory, name string

	// mu guards the fields below. Loads of the index hold it for reading.
	mu     sync.RWMutex
	closed bool
	index  index
	// newest is the version pulled most recently; nil before the first pull.
	newest *mapped
	lock   *os.File
}

// NewReader returns a reader of a tag. Neither the store nor the tag need exist yet.
func NewReader(directory, name string) (*Reader, error) {
	if err := CheckTag(name); err != nil {
		return nil, err
	}
	return &Reader{store: directory, directory: tagPath(directory, name), name: name}, nil
}

// ID returns the id of the tag's newest version, or 0 if there is none. Once there is a version, it
// costs one load from mapped memory.
func (r *Reader) ID() (uint64, error) {
	r.mu.RLock()
	if r.index.page != nil {
		id := r.index.id().Load()
		r.mu.RUnlock()
		return id, nil
	}
	r.mu.RUnlock()
	return r.mapAndLoadID()
}

// mapAndLoadID maps the index, if it exists, and returns the newest id.
func (r *Reader) mapAndLoadID() (uint64, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return 0, ErrClosed
	}
	if r.index.page == nil {
		x, err := mapIndex(r.directory, mapfile.ReadOnly)
		if errors.Is(err, os.ErrNotExist) {
			return 0, nil
		}
		if err != nil {
			return 0, fmt.Errorf("read index of parameters %q: %w", r.name, err)
		}
		r.index = x
	}
	return r.index.id().Load(), nil
}

// Served reports whether the store has a live officer. Without one there will be no new versions.
func (r *Reader) Served() (bool, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return false, ErrClosed
	}
	if r.lock == nil {
		lock, err := os.Open(filepath.Join(r.store, lockName))
		if errors.Is(err, os.ErrNotExist) {
			return false, nil
		}
		if err != nil {
			return false, fmt.Errorf("check for the officer: %w", err)
		}
		r.lock = lock
	}
	return mapfile.Locked(r.lock, 0)
}

// pullTries is how often Pull retries because the version was deleted before it could be mapped.
const pullTries = 100

// Pull returns the tag's newest version, without a copy. It returns [ErrNoVersion] if there is none
// yet.
func (r *Reader) Pull() (*Parameters, error) {
	var err error
	for range pullTries {
		var id uint64
		if id, err = r.ID(); err != nil {
			return nil, err
		}
		if id == 0 {
			return nil, fmt.Errorf("pull parameters %q: %w", r.name, ErrNoVersion)
		}
		var p *Parameters
		if p, err = r.pull(id); err == nil {
			return p, nil
		}
		if !errors.Is(err, os.ErrNotExist) {
			break
		}
	}
	return nil, fmt.Errorf("pull parameters %q: %w", r.name, err)
}

func (r *Reader) pull(id uint64) (*Parameters, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil, ErrClosed
	}
	// Another goroutine may have pulled a newer version meanwhile.
	if r.newest == nil || r.newest.version.GetId() < id {
		if err := r.switchTo(id); err != nil {
			return nil, err
		}
	}
	return r.newest.retain(), nil
}

// switchTo maps a version, and releases the previous one.
func (r *Reader) switchTo(id uint64) error {
	m, err := mapVersion(r.directory, r.name, id)
	if err != nil {
		return err
	}
	before := r.newest
	r.newest = m
	return before.release()
}

// Close closes the reader. Parameters that were pulled remain valid until they are released.
func (r *Reader) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil
	}
	r.closed = true
	errs := []error{r.newest.release(), r.index.close()}
	if r.lock != nil {
		errs = append(errs, r.lock.Close())
	}
	return errors.Join(errs...)
}

// mapped is a reference-counted mapping of a version.
type mapped struct {
	version    *psv1.Version
	all        []byte
	parameters []byte

	// mu guards uses.
	mu   sync.Mutex
	uses int
}

// retain adds a reference.
func (m *mapped) retain() *Parameters {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.uses++
	return &Parameters{mapped: m}
}

// release drops a reference, and unmaps the version with the last one. It accepts nil.
func (m *mapped) release() error {
	if m == nil {
		return nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.uses--; m.uses > 0 {
		return nil
	}
	return mapfile.Unmap(m.all)
}

// Parameters are one version of a tag, in mapped memory. They do not change until they are
// released.
type Parameters struct {
	mapped *mapped
	once   sync.Once
}

// Version describes the parameters. It must not be modified.
func (p *Parameters) Version() *psv1.Version { return p.mapped.version }

// Bytes returns the parameters. They begin at a page boundary, and must not be used after Release.
// The memory is mapped read-only: writing to it crashes the process.
func (p *Parameters) Bytes() []byte { return p.mapped.parameters }

// Verify compares the parameters with the checksum computed when they were pushed.
func (p *Parameters) Verify() error {
	if sum := Checksum(p.Bytes()); sum != p.Version().GetChecksum() {
		return fmt.Errorf("%w: version %d of parameters %q has checksum %08x instead of %08x",
			ErrFormat, p.Version().GetId(), p.Version().GetTag(), sum, p.Version().GetChecksum())
	}
	return nil
}

// Release releases the parameters. Further calls do nothing.
func (p *Parameters) Release() error {
	var err error
	p.once.Do(func() { err = p.mapped.release() })
	return err
}
