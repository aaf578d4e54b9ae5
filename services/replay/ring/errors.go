package ring

import (
	"errors"
	"fmt"

	"github.com/raylink/raylink/services/internal/mapfile"
)

// What a caller may decide by. They come wrapped: compare with [errors.Is].
var (
	// ErrLayout is a layout that no ring can have.
	ErrLayout = errors.New("impossible layout")
	// ErrFormat is a file that is not a ring, is damaged or cut short, or was made by another version.
	ErrFormat = errors.New("not a usable ring file")
	// ErrWrongRing is a file that holds another ring than the one asked for.
	ErrWrongRing = errors.New("the file holds another ring")
	// ErrOtherMachine is a ring that was made by another machine, or before this one was last started.
	ErrOtherMachine = errors.New("the ring was made on another machine, or before this one was last started: its memory can't be shared")
	// ErrUnsupported is a ring on a system that lacks what it needs.
	ErrUnsupported = mapfile.ErrUnsupported
	// ErrClosed is the use of what was closed.
	ErrClosed = errors.New("the ring is closed")
	// ErrEnded is the use of a ring whose creator has ended it.
	ErrEnded = errors.New("the ring has been ended by its creator")
	// ErrEmpty is a read of a ring without a readable row.
	ErrEmpty = errors.New("the ring has no readable row")
	// ErrNoRoom is a refused write: see [NoRoomError].
	ErrNoRoom = errors.New("no room")
	// ErrBatch is a batch that does not fit the ring's layout, or that has more rows than the ring.
	ErrBatch = errors.New("the batch does not fit the ring")
	// ErrTooManyAreas is an area more than a ring can have.
	ErrTooManyAreas = errors.New("too many areas are held")
	// ErrTooManyParticipants is a process more than can write to a ring, or hold areas of it.
	ErrTooManyParticipants = errors.New("too many processes use the ring")
)

// NoRoomError says why a write was refused. It is an [ErrNoRoom].
type NoRoomError struct {
	// Rows is how many rows were to be written, and Written how many of them were.
	Rows, Written int
	// Capacity is the ring's; Held is how many of its rows are in areas.
	Capacity, Held uint64
	// Holders are the processes that hold the areas.
	Holders []int
}

// Error names the rows and who is in the way.
func (e *NoRoomError) Error() string {
	if e.Held > 0 {
		return fmt.Sprintf("no room: %d of %d rows written; of the ring's %d rows, areas of the processes %v hold %d",
			e.Written, e.Rows, e.Capacity, e.Holders, e.Held)
	}
	return fmt.Sprintf("no room: %d of %d rows written; all of the ring's %d rows are being written by others",
		e.Written, e.Rows, e.Capacity)
}

// Is makes it an ErrNoRoom.
func (e *NoRoomError) Is(target error) bool { return target == ErrNoRoom }
