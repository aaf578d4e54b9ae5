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
	return errors.Join(err, record.Save())
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
	if id == "" || id != filepath.Base(id) {
		return nil, fmt.Errorf("the run %q: %w", id, fs.ErrNotExist)
	}
	record := &Record{folder: filepath.Join(r.folder(), id)}
	text, err := os.ReadFile(record.file())
	if err != nil {
		return nil, fmt.Errorf("the run %s: %w", id, err)
	}
	if err := json.Unmarshal(text, record); err != nil {
		return nil, fmt.Errorf("the run %s: reading %s: %w", id, record.file(), err)
	}
	return record, nil
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
