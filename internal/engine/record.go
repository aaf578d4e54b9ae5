package engine

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// State is what has become of a run.
type State string

// The states of a run.
const (
	Running State = "running"
	Ended   State = "ended"
	// Vanished is the state of a run whose head is gone without having said how it ended.
	Vanished State = "vanished"
)

// Record is what is known of a run that was detached. It is a file of the user's on the machine
// where the run was started.
type Record struct {
	ID      string    `json:"id"`
	Engine  string    `json:"engine"`
	Command []string  `json:"command"`
	Started time.Time `json:"started"`
	State   State     `json:"state"`
	// Job is what the engine calls the run: the id of a process, a job, or a namespace's object.
	Job string `json:"job,omitempty"`
	// Exit is the exit code of the program, and Error why there is none, once State is Ended.
	Exit  int    `json:"exit"`
	Error string `json:"error,omitempty"`

	folder string
	held   *os.File // keeps the lock of Hold
}

// Detached is what an engine does for runs that were left behind by `raylink run --detach`.
type Detached interface {
	// Update sets the state of a record, and of an ended run the exit code, as the engine knows
	// them now.
	Update(ctx context.Context, record *Record) error
	// Follow copies what the run prints to w, from the beginning, until the run or ctx ends.
	Follow(ctx context.Context, record *Record, w io.Writer) error
	// Stop asks a run to stop in order, or ends it now.
	Stop(ctx context.Context, record *Record, now bool) error
}

// Records are the records in a data directory.
type Records struct{ Data string }

// kept is how many records of ended runs are kept.
const kept = 20

func (r Records) folder() string { return filepath.Join(r.Data, "engines") }

// NewID returns an id for a run: eight characters that are easy to type.
func NewID() string { return strings.ToLower(rand.Text()[:8]) }

// Create stores a new record, whose directory is the run's own, and removes the oldest ones of runs
// that have ended.
func (r Records) Create(record *Record) error {
	record.folder = filepath.Join(r.folder(), record.ID)
	if err := os.MkdirAll(record.folder, 0o700); err != nil {
		return fmt.Errorf("making the directory of a run: %w", err)
	}
	all, err := r.All()
	if err != nil {
		return err
	}
	ended := 0
	for _, old := range slices.Backward(all) {
		if old.State == Running {
			continue
		}
		if ended++; ended > kept {
			err = errors.Join(err, os.RemoveAll(old.folder))
		}
	}
	if err = errors.Join(err, record.Save()); err != nil {
		err = errors.Join(err, os.RemoveAll(record.folder))
	}
	return err
}

// All returns the records, the oldest first.
func (r Records) All() ([]*Record, error) {
	entries, err := os.ReadDir(r.folder())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var all []*Record
	for _, entry := range entries {
		record, err := r.Find(entry.Name())
		if errors.Is(err, fs.ErrNotExist) {
			continue // it is being made, or removed
		}
		if err != nil {
			return nil, err
		}
		all = append(all, record)
	}
	slices.SortFunc(all, func(a, b *Record) int { return a.Started.Compare(b.Started) })
	return all, nil
}

// Find returns the record of an id; fs.ErrNotExist if there is none.
func (r Records) Find(id string) (*Record, error) {
	if id == "" || strings.Trim(id, "abcdefghijklmnopqrstuvwxyz0123456789") != "" {
		return nil, fmt.Errorf("the run %q: %w", id, fs.ErrNotExist)
	}
	record := &Record{ID: id, folder: filepath.Join(r.folder(), id)}
	if err := record.Reload(); err != nil {
		return nil, err
	}
	return record, nil
}

// Reload reads the record again.
func (r *Record) Reload() error {
	text, err := os.ReadFile(r.file())
	if err != nil {
		return fmt.Errorf("the run %s: %w", r.ID, err)
	}
	if err := json.Unmarshal(text, r); err != nil {
		return fmt.Errorf("the run %s: reading %s: %w", r.ID, r.file(), err)
	}
	return nil
}

func (r *Record) file() string { return filepath.Join(r.folder, "run.json") }

// Directory is the directory of the run's files.
func (r *Record) Directory() string { return r.folder }

// Output is the file of what the run prints.
func (r *Record) Output() string { return filepath.Join(r.folder, "output") }

// Save stores the record; readers see the old one or the new one.
func (r *Record) Save() error {
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	next := r.file() + ".new"
	if err := os.WriteFile(next, append(text, '\n'), 0o600); err != nil {
		return fmt.Errorf("storing the record of the run %s: %w", r.ID, err)
	}
	return os.Rename(next, r.file())
}

// Hold marks the run as alive until this process ends.
func (r *Record) Hold() error {
	lock, err := os.OpenFile(r.lock(), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return errors.Join(fmt.Errorf("the run %s has a head already: %w", r.ID, err), lock.Close())
	}
	r.held = lock
	return nil
}

// IsHeld reports whether a process of this machine holds the run.
func (r *Record) IsHeld() (bool, error) {
	lock, err := os.Open(r.lock())
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer func() { _ = lock.Close() }() // it was only read
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_SH|unix.LOCK_NB); !errors.Is(err, unix.EWOULDBLOCK) {
		return false, err
	}
	return true, nil
}

func (r *Record) lock() string { return filepath.Join(r.folder, "head") }

// followEvery is how often a file that another process writes is read: what is on a network's file
// system has no notices of changes.
const followEvery = 100 * time.Millisecond

// Follow copies a file to w as it grows, from its beginning, until ended returns true; what has
// been written by then is copied still. The file need not be there yet.
func Follow(ctx context.Context, w io.Writer, path string, ended func() (bool, error)) error {
	tick := time.NewTicker(followEvery)
	defer tick.Stop()
	var from *os.File
	defer func() {
		if from != nil {
			_ = from.Close() // it was only read
		}
	}()
	for {
		over, err := ended()
		if err != nil {
			return err
		}
		if from == nil {
			from, err = os.Open(path)
			if err != nil && (over || !errors.Is(err, fs.ErrNotExist)) {
				return err
			}
		}
		if from != nil {
			if _, err := io.Copy(w, from); err != nil {
				return err
			}
		}
		if over {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// AwaitEnd returns once a run is not running any more.
func AwaitEnd(ctx context.Context, detached Detached, record *Record) error {
	tick := time.NewTicker(followEvery)
	defer tick.Stop()
	for {
		if err := detached.Update(ctx, record); err != nil || record.State != Running {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
