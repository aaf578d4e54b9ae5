package ring

import (
	"errors"
	"fmt"

	"github.com/raylink/raylink/services/internal/mapfile"
)

// Errors that a caller may act on. They are returned wrapped: compare with [errors.Is].
var (
	// ErrLayout means that a layout is invalid.
	ErrLayout = errors.New("invalid layout")
	// ErrFormat means that a file is not a ring, is damaged or truncated, or has another format
	// version.
	ErrFormat = errors.New("not a valid ring file")
	// ErrWrongRing means that the file holds a ring with another id than the expected one.
	ErrWrongRing = errors.New("the file holds another ring")
	// ErrOtherMachine means that the ring was made on another machine, or before this one was last
	// booted.
	ErrOtherMachine = errors.New("the ring was made on another machine, or before this one was last booted: its memory can't be shared")
	// ErrUnsupported means that the operating system lacks what rings need.
	ErrUnsupported = mapfile.ErrUnsupported
	// ErrClosed means that the ring was closed.
	ErrClosed = errors.New("the ring is closed")
	// ErrEnded means that the ring's creator has ended it.
	ErrEnded = errors.New("the ring has been ended by its creator")
	// ErrEmpty means that the ring has no readable row.
	ErrEmpty = errors.New("the ring has no readable row")
	// ErrNoRoom means that a write failed for lack of room: see [NoRoomError].
	ErrNoRoom = errors.New("no room")
	// ErrBatch means that a batch does not fit the ring's layout, or has more rows than the ring.
	ErrBatch = errors.New("the batch does not fit the ring")
	// ErrTooManyAreas means that the table of areas is full.
	ErrTooManyAreas = errors.New("too many areas")
	// ErrTooManyParticipants means that the maximum number of processes already write to the ring
	// or hold areas of it.
	ErrTooManyParticipants = errors.New("too many processes use the ring")
)

// NoRoomError explains why a write failed. It matches [ErrNoRoom].
type NoRoomError struct {
	// Rows is the size of the batch, Written how many of its rows were written.
	Rows, Written int
	// Capacity is that of the ring; Held is how many of its rows areas hold.
	Capacity, Held uint64
	// Holders are the ids of the processes that hold the areas.
	Holders []int
}

// Error describes the failed write and what is in its way.
func (e *NoRoomError) Error() string {
	if e.Held > 0 {
		return fmt.Sprintf("no room: %d of %d rows written; areas of processes %v hold %d of the ring's %d rows",
			e.Written, e.Rows, e.Holders, e.Held, e.Capacity)
	}
	return fmt.Sprintf("no room: %d of %d rows written; other writers are writing all of the ring's %d rows",
		e.Written, e.Rows, e.Capacity)
}

// Is reports whether target is [ErrNoRoom].
func (e *NoRoomError) Is(target error) bool { return target == ErrNoRoom }
