package ring

import (
	"errors"
	"fmt"
	"strings"
	"time"

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
	// ErrForeign means that others than its user can access a file, or that it is none.
	ErrForeign = mapfile.ErrForeign
	// ErrInUse means that the ring's creator is alive: see [InUseError].
	ErrInUse = errors.New("the ring is in use")
	// ErrSpace means that the file system has too little space for the ring.
	ErrSpace = mapfile.ErrSpace
	// ErrUnsupported means that the operating system lacks what rings need.
	ErrUnsupported = mapfile.ErrUnsupported
	// ErrClosed means that the ring was closed.
	ErrClosed = errors.New("the ring is closed")
	// ErrEnded means that the ring's creator has ended it.
	ErrEnded = errors.New("the ring has been ended by its creator")
	// ErrOrphaned means that the ring's creator has exited without ending the ring.
	ErrOrphaned = errors.New("the process that created the ring has exited")
	// ErrEmpty means that the ring has no readable row.
	ErrEmpty = errors.New("the ring has no readable row")
	// ErrNotEmpty means that a ring that should be filled was written to before.
	ErrNotEmpty = errors.New("the ring is not empty")
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

// Holder is a process that holds areas.
type Holder struct {
	// PID is the process's id, as the process itself sees it.
	PID int
	// Rows is the number of rows of its areas.
	Rows uint64
	// Age is how long the process has held the oldest of them.
	Age time.Duration
}

// String describes the holder.
func (h Holder) String() string {
	return fmt.Sprintf("process %d has held %d rows for %v", h.PID, h.Rows, rounded(h.Age))
}

// NoRoomError explains why a write failed. It matches [ErrNoRoom], and the error of the context
// that ended the wait for room.
type NoRoomError struct {
	// Rows is the size of the batch, Written how many of its rows were written.
	Rows, Written int
	// Capacity is that of the ring; Held is how many of its rows areas hold.
	Capacity, Held uint64
	// Holders hold the areas, the oldest first.
	Holders []Holder
	// Writers are the ids of some processes whose rows were in the way: they began to write them
	// and have not finished.
	Writers []int
	// Waited is how long the write waited for room.
	Waited time.Duration
	// Cause is the error of the context that ended the wait, or nil if the write did not wait.
	Cause error
}

// Error describes the failed write and what is in its way.
func (e *NoRoomError) Error() string {
	var b strings.Builder
	b.WriteString("no room")
	if e.Cause != nil {
		fmt.Fprintf(&b, " after waiting %v (%v)", rounded(e.Waited), e.Cause)
	}
	fmt.Fprintf(&b, ": %d of %d rows written", e.Written, e.Rows)
	if e.Held > 0 {
		fmt.Fprintf(&b, "; areas hold %d of the ring's %d rows: %s", e.Held, e.Capacity, holderText(e.Holders))
	}
	switch {
	case len(e.Writers) > 0:
		fmt.Fprintf(&b, "; processes %v have begun to write rows of the ring's %d and not finished", e.Writers, e.Capacity)
	case e.Held == 0:
		fmt.Fprintf(&b, "; other writers are writing the ring's %d rows", e.Capacity)
	}
	b.WriteString(": wait, release areas sooner or give the ring more capacity")
	return b.String()
}

// Is reports whether target is [ErrNoRoom].
func (e *NoRoomError) Is(target error) bool { return target == ErrNoRoom }

// Unwrap returns the error of the context that ended the wait.
func (e *NoRoomError) Unwrap() error { return e.Cause }

// maxHolders bounds the holders that an error's text names.
const maxHolders = 5

// holderText lists the first holders.
func holderText(holders []Holder) string {
	if len(holders) == 0 {
		return "released meanwhile"
	}
	parts := make([]string, 0, maxHolders+1)
	for i, h := range holders {
		if i == maxHolders {
			parts = append(parts, fmt.Sprintf("and %d more processes", len(holders)-i))
			break
		}
		parts = append(parts, h.String())
	}
	return strings.Join(parts, ", ")
}

// rounded returns a duration with about three digits.
func rounded(d time.Duration) time.Duration {
	unit := time.Nanosecond
	for unit < d/1000 {
		unit *= 10
	}
	return d.Round(unit)
}
