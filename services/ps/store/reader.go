package store

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/raylink/raylink/services/internal/mapfile"
)

// Reader follows one tag of a store from any process of the machine. It is safe for concurrent use.
type Reader struct {
	store, directory, name string

	// pulling guards the fields below. It is acquired before mu.
	pulling sync.Mutex
	// newest is the version that was pulled most recently; nil before the first pull.
	newest *mapped
	// files holds the files that are mapped. They remain mapped when they are released, because
	// later versions use the same files.
	files map[mapfile.ID]*mapped
	// forgotten is set once a forgotten release was logged.
	forgotten bool

	// mu guards the fields below. Loads of words hold it for reading.
	mu     sync.RWMutex
	closed bool
	index  []byte
	status []byte
	lock   *os.File

	// unmapping counts the goroutines that unmap files.
	unmapping sync.WaitGroup
}

// NewReader returns a reader of a tag. Neither the store nor the tag need exist yet.
func NewReader(directory, name string) (*Reader, error) {
	if err := CheckTag(name); err != nil {
		return nil, err
	}
	return &Reader{store: directory, directory: tagPath(directory, name), name: name, files: make(map[mapfile.ID]*mapped)}, nil
}

// ID returns the id of the tag's newest version, or 0 if there is none. Once there is a version, it
// costs one load from mapped memory.
func (r *Reader) ID() (uint64, error) {
	r.mu.RLock()
	if r.index != nil {
		id := word(r.index, newestAt).Load()
		r.mu.RUnlock()
		if id != removed {
			return id, nil
		}
	} else {
		r.mu.RUnlock()
	}
	var id uint64
	err := r.withIndex(func(index []byte) { id = word(index, newestAt).Load() })
	if id == removed { // removed just now
		id = 0
	}
	return id, err
}

// withIndex maps the index, if it exists, and calls a function with it.
func (r *Reader) withIndex(do func(index []byte)) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return ErrClosed
	}
	if r.index != nil && word(r.index, newestAt).Load() == removed {
		index := r.index
		r.index = nil
		if err := mapfile.Unmap(index); err != nil {
			return err
		}
	}
	if r.index == nil {
		index, err := mapPage(filepath.Join(r.directory, indexName), indexMagic, mapfile.ReadOnly)
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read index of parameters %q: %w", r.name, err)
		}
		r.index = index
	}
	do(r.index)
	return nil
}

// State is what a reader knows about how current the machine's copy is.
type State struct {
	// ID is the id of the newest version on this machine, Announced that of the captain's. 0 means
	// that there is none.
	ID, Announced uint64
	// Last is the highest id that the tag had on this machine. It was loaded before ID, so if that
	// is 0, the tag was deleted since.
	Last uint64
	// Behind is how long ID has been below Announced; 0 if it is not.
	Behind time.Duration
	// Unconfirmed is the time since the captain last confirmed the store: Announced may be out of
	// date by that much.
	Unconfirmed time.Duration
}

// State returns how current the machine's copy of the tag is.
func (r *Reader) State() (State, error) {
	var state State
	var behind uint64
	err := r.withIndex(func(index []byte) {
		// Before the newest id: a tag whose newest id is 0 was deleted if this one is not.
		state.Last = word(index, lastAt).Load()
		state.Announced = word(index, announcedAt).Load()
		behind = word(index, behindAt).Load()
		state.ID = word(index, newestAt).Load()
	})
	if err != nil {
		return State{}, err
	}
	if state.ID == removed { // not deleted: another officer takes over
		state.ID, state.Last, state.Announced = 0, 0, 0
	}
	if state.ID < state.Announced && behind > 0 {
		state.Behind = since(behind)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return State{}, ErrClosed
	}
	if r.status == nil {
		status, err := mapPage(filepath.Join(r.store, statusName), statusMagic, mapfile.ReadOnly)
		if errors.Is(err, os.ErrNotExist) {
			return state, nil
		}
		if err != nil {
			return State{}, fmt.Errorf("read status of the parameter store: %w", err)
		}
		r.status = status
	}
	state.Unconfirmed = since(word(r.status, confirmedAt).Load())
	return state, nil
}

// Served reports whether the store has a live officer. Without one there will be no new versions.
func (r *Reader) Served() (bool, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return false, ErrClosed
	}
	if r.lock != nil {
		status, err := mapfile.Stat(r.lock)
		if err != nil {
			return false, fmt.Errorf("check for the officer: %w", err)
		}
		if status.Links == 0 { // the store was removed, and may exist again
			err := r.lock.Close()
			status := r.status
			r.lock, r.status = nil, nil
			if err := errors.Join(err, mapfile.Unmap(status)); err != nil {
				return false, err
			}
		}
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

// Bounds of a pull's retries: a version's file was recycled or removed before it could be held.
const (
	pullTries = 200
	// pullSpins is how many tries follow each other without a pause.
	pullSpins = 100
	pullPause = 100 * time.Microsecond
)

// errRecycled means that a version's file was recycled before it could be held.
var errRecycled = errors.New("the version's file was recycled")

// Pull returns the tag's newest version, without a copy. It returns [ErrNoVersion] if there is none
// yet, or if it was deleted.
func (r *Reader) Pull() (*Parameters, error) {
	r.pulling.Lock()
	defer r.pulling.Unlock()
	var err error
	for try := range pullTries {
		if try >= pullSpins {
			time.Sleep(pullPause) //nolint:forbidigo // the officer, another process, is not observable
		}
		var id uint64
		if id, err = r.ID(); err != nil {
			break
		}
		if id == 0 {
			err = ErrNoVersion
			break
		}
		var p *Parameters
		if p, err = r.pull(id); err == nil {
			return p, nil
		}
		if !errors.Is(err, os.ErrNotExist) && !errors.Is(err, errRecycled) {
			break
		}
	}
	return nil, fmt.Errorf("pull parameters %q: %w", r.name, err)
}

// pull holds a version. It finds a file that is not mapped yet by the version's id, and by the file
// a mapping whose state does not have the id.
func (r *Reader) pull(id uint64) (*Parameters, error) {
	if r.newest != nil && r.newest.id == id {
		if err := r.newest.hold(id, r.name); err != nil {
			return nil, err
		}
		return r.newest.parameters(), nil
	}
	if m := r.find(id); m != nil {
		err := m.hold(id, r.name)
		if err == nil {
			r.newest = m
			return m.parameters(), nil
		}
		if !errors.Is(err, errRecycled) {
			return nil, err
		}
	}
	handle, _, err := mapfile.Open(versionPath(r.directory, id))
	if err != nil {
		return nil, err
	}
	status, err := mapfile.Stat(handle)
	if err != nil {
		return nil, errors.Join(err, handle.Close())
	}
	m, known := r.files[status.ID]
	if known {
		err = handle.Close()
	} else {
		m = &mapped{reader: r, handle: handle, key: status.ID}
	}
	if err == nil {
		err = m.hold(id, r.name)
	}
	if err != nil {
		if !known {
			err = errors.Join(err, m.close())
		}
		return nil, err
	}
	r.files[m.key] = m
	r.newest = m
	return m.parameters(), nil
}

// find returns the mapped file that has a version according to its state, which can change until
// the file is held. It returns nil if there is none.
func (r *Reader) find(id uint64) *mapped {
	for _, m := range r.files {
		if len(m.all) > 0 && word(m.all, stateAt).Load() == id {
			return m
		}
	}
	return nil
}

// dropRemoved unmaps files that were removed and are not held. A release does it, because a pull is
// waited for.
func (r *Reader) dropRemoved() {
	for _, m := range r.files {
		if m.uses == 0 {
			m.dropIfRemoved()
		}
	}
}

func (r *Reader) isClosed() bool {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.closed
}

// Close closes the reader. Parameters that were pulled remain valid until they are released.
func (r *Reader) Close() error {
	r.pulling.Lock()
	defer r.pulling.Unlock()
	defer r.unmapping.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil
	}
	r.closed = true
	var errs []error
	for key, m := range r.files {
		if m.uses == 0 {
			delete(r.files, key)
			errs = append(errs, m.close())
		}
	}
	errs = append(errs, mapfile.Unmap(r.index), mapfile.Unmap(r.status))
	r.index, r.status = nil, nil
	if r.lock != nil {
		errs = append(errs, r.lock.Close())
	}
	return errors.Join(errs...)
}
