package local

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"syscall"

	"github.com/raylink/raylink/internal/engine"
)

// Detached is what becomes of runs on this machine whose heads have no terminal. Record.Job is the
// head's process id.
type Detached struct{}

// Update implements [engine.Detached].
func (Detached) Update(_ context.Context, record *engine.Record) error {
	if record.State != engine.Running {
		return nil
	}
	held, err := record.IsHeld()
	if err == nil && !held {
		if err = record.Reload(); err == nil && record.State == engine.Running { // it did not end just now
			record.State = engine.Vanished
		}
	}
	return err
}

// Follow implements [engine.Detached].
func (d Detached) Follow(ctx context.Context, record *engine.Record, w io.Writer) error {
	return engine.Follow(ctx, w, record.Output(), func() (bool, error) {
		err := errors.Join(record.Reload(), d.Update(ctx, record))
		return record.State != engine.Running, err
	})
}

// Stop implements [engine.Detached]. The head takes the run down by itself; one that is killed has
// no children that outlive it.
func (Detached) Stop(_ context.Context, record *engine.Record, now bool) error {
	held, err := record.IsHeld()
	if err != nil || !held {
		return err
	}
	pid, err := strconv.Atoi(record.Job)
	if err != nil {
		return fmt.Errorf("local: the record of the run %s has no process id: %w", record.ID, err)
	}
	signal := syscall.SIGTERM
	if now {
		signal = syscall.SIGKILL
	}
	if err := syscall.Kill(pid, signal); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("local: stopping the process %d: %w", pid, err)
	}
	return nil
}
