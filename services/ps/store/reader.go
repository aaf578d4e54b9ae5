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

// Reader follows one tag of a store, from any process of the machine. Its methods may be called from any goroutine.
type Reader struct {
	store, directory, name string

	// mu guards the fields below. It is held for reading while the index is read.
	mu     sync.RWMutex
	closed bool
	index  index
	// newest is the version that was pulled last; nil before the first.
	newest *mapped
	lock   *os.File
}

// NewReader follows a tag of the store in a directory, from its first version on: neither need exist yet.
func NewReader(directory, name string) (*Reader, error) {
	if err := CheckTag(name); err != nil {
		return nil, err
	}
	return &Reader{store: directory, directory: tagPath(directory, name), name: name}, nil
}

// ID is the id of the tag's newest version, or 0 before there is one. Once there is one it costs no more than a look at a word
// of memory.
func (r *Reader) ID() (uint64, error) {
	r.mu.RLock()
	if r.index.page != nil {
		id := r.index.id().Load()
		r.mu.RUnlock()
		return id, nil
	}
	r.mu.RUnlock()
	return r.firstID()
}

// firstID maps the index, if there is one.
func (r *Reader) firstID() (uint64, error) {
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

// Served says whether the store has an officer: without one no new version will come.
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
			return false, fmt.Errorf("look for the officer: %w", err)
		}
		r.lock = lock
	}
	return mapfile.Locked(r.lock, 0)
}

// pullTries is how often Pull starts again because the version that it had learned of was old when it came to map it.
const pullTries = 100

// Pull gives the tag's newest version, in place. [ErrNoVersion] says that there is none yet.
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
	older := r.newest == nil || r.newest.version.GetId() < id // a newer one was pulled by another goroutine meanwhile
	if older || !guarded {
		if err := r.turnTo(id); err != nil {
			return nil, err
		}
	}
	return r.newest.use(), nil
}

// turnTo maps a version, and lets go of the one before.
func (r *Reader) turnTo(id uint64) error {
	m, err := mapVersion(r.directory, r.name, id)
	if err != nil {
		return err
	}
	before := r.newest
	r.newest = m
	return before.drop()
}

// Close ends the reader. Parameters that were pulled stay until they are released.
func (r *Reader) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil
	}
	r.closed = true
	errs := []error{r.newest.drop(), r.index.close()}
	if r.lock != nil {
		errs = append(errs, r.lock.Close())
	}
	return errors.Join(errs...)
}

// mapped is a version in memory, for as long as somebody uses it.
type mapped struct {
	version    *psv1.Version
	all        []byte
	parameters []byte

	// mu guards uses.
	mu   sync.Mutex
	uses int
}

func (m *mapped) use() *Parameters {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.uses++
	return &Parameters{mapped: m}
}

// drop ends a use. Nil has none.
func (m *mapped) drop() error {
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

// Parameters are one version of a tag, in place. They are what was pushed, and stay so until they are released.
type Parameters struct {
	mapped *mapped
	once   sync.Once
}

// Version says which they are. It must not be changed.
func (p *Parameters) Version() *psv1.Version { return p.mapped.version }

// Bytes are the parameters, mapped read-only: who writes to them ends the process. They begin at a page's beginning, and must
// not be used after Release.
func (p *Parameters) Bytes() []byte { return p.mapped.parameters }

// Verify compares the bytes with the checksum that they were pushed with.
func (p *Parameters) Verify() error {
	if sum := Checksum(p.Bytes()); sum != p.Version().GetChecksum() {
		return fmt.Errorf("%w: version %d of parameters %q has the checksum %08x, not %08x",
			ErrFormat, p.Version().GetId(), p.Version().GetTag(), sum, p.Version().GetChecksum())
	}
	return nil
}

// Release lets the parameters go. Only the first call does anything.
func (p *Parameters) Release() error {
	var err error
	p.once.Do(func() { err = p.mapped.drop() })
	return err
}
