package slurm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/raylink/raylink/internal/engine"
)

// Detached is what becomes of jobs that no process follows. Record.Job is what [Job.String]
// returns.
//
// What a job prints is in its own directory, which its nodes share. Once it is found to have ended,
// its output moves to the record, and nothing of it is left there.
type Detached struct{}

// Update implements [engine.Detached].
func (Detached) Update(ctx context.Context, record *engine.Record) error {
	if record.State != engine.Running {
		return nil
	}
	// Of several processes that find out, one moves the output.
	lock, err := os.OpenFile(filepath.Join(record.Directory(), "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("slurm: locking the record of a run: %w", err)
	}
	defer lock.Close() //nolint:errcheck // nothing is written to it
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("slurm: locking the record of a run: %w", err)
	}
	if err := record.Reload(); err != nil || record.State != engine.Running {
		return err
	}
	j, err := ParseJob(record.Job)
	if err != nil {
		return err
	}
	state, exit, cause, err := j.State(ctx)
	if err != nil || state == engine.Running {
		return err
	}
	if err := j.copyOutput(record.Output()); err != nil {
		return fmt.Errorf("slurm: keeping the output of the job %s: %w", j.ID, err)
	}
	record.State, record.Exit, record.Error = state, exit, cause
	return errors.Join(record.Save(), j.Remove())
}

// copyOutput copies what a job has printed, which is nothing if it has not begun.
func (j *Job) copyOutput(to string) error {
	text, err := os.Open(j.path(outputFile))
	if errors.Is(err, fs.ErrNotExist) {
		return os.WriteFile(to, nil, 0o600)
	}
	if err != nil {
		return err
	}
	defer text.Close() //nolint:errcheck // it was only read
	f, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, text)
	return errors.Join(err, f.Close())
}

// Follow implements [engine.Detached].
func (d Detached) Follow(ctx context.Context, record *engine.Record, w io.Writer) error {
	if record.State == engine.Running {
		j, err := ParseJob(record.Job)
		if err != nil {
			return err
		}
		say := func(line string) { _, _ = fmt.Fprintln(w, "raylink: "+line) } // a reader that is gone loses lines
		if _, err := j.follow(ctx, w, w, 0, say); err != nil {
			return err
		}
		return d.Update(ctx, record)
	}
	return engine.Follow(ctx, w, record.Output(), func() (bool, error) { return true, nil })
}

// Stop implements [engine.Detached].
func (Detached) Stop(ctx context.Context, record *engine.Record, now bool) error {
	j, err := ParseJob(record.Job)
	if err != nil {
		return err
	}
	return j.Stop(ctx, now)
}

// String is the job as [ParseJob] parses it, for the records of runs.
func (j *Job) String() string { return j.ID + ":" + j.Directory }

// ParseJob parses what String returns.
func ParseJob(text string) (*Job, error) {
	id, directory, ok := strings.Cut(text, ":")
	if !ok || id == "" || !filepath.IsAbs(directory) {
		return nil, fmt.Errorf("slurm: %q is no job of a run: it must be ID:DIRECTORY", text)
	}
	return &Job{ID: id, Directory: directory}, nil
}
