package ring

import (
	"errors"
	"fmt"

	"github.com/raylink/raylink/services/internal/mapfile"
)

// InUseError means that a file's ring can't be taken over, because its creator, or the process that
// took it over last, has it open. It matches [ErrInUse].
type InUseError struct {
	// PID is the process's id, as the process itself sees it; 0 if it is not known.
	PID int
}

// Error names the process.
func (e *InUseError) Error() string {
	if e.PID == 0 {
		return ErrInUse.Error()
	}
	return fmt.Sprintf("%v: process %d has it open", ErrInUse, e.PID)
}

// Is reports whether target is [ErrInUse].
func (*InUseError) Is(target error) bool { return target == ErrInUse }

// TakeOver opens the ring in a file whose creator has died or has ended the ring, and makes the
// caller its creator. The ring keeps its id and its rows, and processes that have mapped it go on:
// their heads and areas stay valid.
//
// prepare is called with the ring once no other process can take it over. If it returns an error,
// TakeOver returns that. Until prepare has returned, nothing of the file is changed. Then the areas
// of the creator before are released, and the rows that it was writing are given up. A ring that it
// was filling is empty: see [Ring.Loading].
//
// The error is [ErrFormat] if the file is not a complete ring, [ErrOtherMachine] if the machine was
// booted since it was created, [ErrForeign] if others than its user can access the file, or an
// [InUseError].
func TakeOver(path string, prepare func(*Ring) error) (*Ring, error) {
	file, size, err := mapfile.Open(path)
	if err != nil {
		return nil, fmt.Errorf("take over ring %s: %w", path, err)
	}
	r := &Ring{path: path, file: file, self: noParticipant}
	if err := r.takeOver(size, prepare); err != nil {
		return nil, fmt.Errorf("take over ring %s: %w", path, errors.Join(err, r.unmapFile()))
	}
	return r, nil
}

func (r *Ring) takeOver(size int64, prepare func(*Ring) error) error {
	if err := r.load(size); err != nil {
		return err
	}
	if err := r.mapFile(); err != nil {
		return err
	}
	// The lock shows that the creator is dead, and keeps others from taking over the ring.
	switch err := mapfile.Lock(r.file, r.participantOffset(ownerIndex)); {
	case errors.Is(err, mapfile.ErrLocked):
		return &InUseError{PID: r.processID(ownerIndex)}
	case err != nil:
		return err
	}
	if err := prepare(r); err != nil {
		return err
	}
	if err := r.claimIndex(ownerIndex); err != nil {
		return err
	}
	if err := r.endLoading(); err != nil {
		return err
	}
	r.counter(counterTakeovers).Add(1)
	r.counter(counterEnded).Store(0)
	return nil
}

// Served reports whether the ring has a creator that is alive and has not ended it. If not, it may
// have one again: see [TakeOver].
func (r *Ring) Served() (bool, error) {
	if err := r.pin(); err != nil {
		return false, err
	}
	defer r.unpin()
	if r.ended() {
		return false, nil
	}
	return r.alive(ownerIndex)
}

// Takeovers returns how often the ring was taken over, 0 if it is closed.
func (r *Ring) Takeovers() uint64 {
	if r.pin() != nil {
		return 0
	}
	defer r.unpin()
	return r.counter(counterTakeovers).Load()
}

// RaiseMark sets the ring's mark to the maximum of its value and another. The ring's creator may
// use it for anything that has to survive the death of its process. It makes no system call.
func (r *Ring) RaiseMark(to uint64) error {
	if err := r.pin(); err != nil {
		return err
	}
	defer r.unpin()
	raise(r.counter(counterMark), to)
	return nil
}

// Mark returns the ring's mark, which is 0 at first.
func (r *Ring) Mark() (uint64, error) {
	if err := r.pin(); err != nil {
		return 0, err
	}
	defer r.unpin()
	return r.counter(counterMark).Load(), nil
}
