package table

import (
	"errors"
	"fmt"
	"time"
)

// Errors that a caller may act on. They are returned wrapped: compare with [errors.Is].
var (
	// ErrConfig means that there can't be such a table: see [ConfigError].
	ErrConfig = errors.New("invalid table")
	// ErrItem means that an item can't be inserted: see [ItemError].
	ErrItem = errors.New("invalid item")
	// ErrPriority means that a priority is negative, not a number, or too high: see
	// [PriorityError].
	ErrPriority = errors.New("invalid priority")
	// ErrArgument means that the arguments of a call do not fit together.
	ErrArgument = errors.New("invalid argument")
	// ErrBlocked means that the context of a call ended while the limiter made it wait: see
	// [BlockedError].
	ErrBlocked = errors.New("the limiter made the call wait")
	// ErrClosed means that the table was closed.
	ErrClosed = errors.New("the table is closed")
)

// ConfigError explains why there can't be a table of this configuration. It matches [ErrConfig].
type ConfigError struct {
	Table string
	// Reason says which setting is invalid, and what it could be.
	Reason string
}

// Error describes the invalid setting.
func (e *ConfigError) Error() string { return fmt.Sprintf("configure table %q: %s", e.Table, e.Reason) }

// Is reports whether target is [ErrConfig].
func (*ConfigError) Is(target error) bool { return target == ErrConfig }

// ItemError explains why an item can't be inserted. It matches [ErrItem].
type ItemError struct {
	// Index is the item's index in the call.
	Index  int
	Reason string
}

// Error describes the invalid item.
func (e *ItemError) Error() string { return fmt.Sprintf("item %d is invalid: %s", e.Index, e.Reason) }

// Is reports whether target is [ErrItem].
func (*ItemError) Is(target error) bool { return target == ErrItem }

// PriorityError means that a priority is invalid. It matches [ErrPriority].
type PriorityError struct {
	// Index is the index of the item or key in the call.
	Index    int
	Priority float64
	Reason   string
}

// Error describes the invalid priority.
func (e *PriorityError) Error() string {
	return fmt.Sprintf("priority %d is %g: %s", e.Index, e.Priority, e.Reason)
}

// Is reports whether target is [ErrPriority].
func (*PriorityError) Is(target error) bool { return target == ErrPriority }

// BlockedError means that the context of a call ended while the limiter made it wait, or that the
// call should not wait. It matches [ErrBlocked] and the context's error.
type BlockedError struct {
	Blocked

	Table string
	// Cause is the context's error, or nil if the call should not wait.
	Cause error
}

// Error says what was done and what the call waited for.
func (e *BlockedError) Error() string {
	if e.Cause == nil {
		return fmt.Sprintf("table %q: %v", e.Table, e.Blocked)
	}
	return fmt.Sprintf("table %q: %v: %v", e.Table, e.Blocked, e.Cause)
}

// Is reports whether target is [ErrBlocked].
func (*BlockedError) Is(target error) bool { return target == ErrBlocked }

// Unwrap returns the context's error.
func (e *BlockedError) Unwrap() error { return e.Cause }

// Blocked describes a call that waits.
type Blocked struct {
	// Caller is the one that the call named, or empty.
	Caller string
	Op     Op
	// Done of Total items have been inserted or drawn.
	Done, Total int
	Waited      time.Duration
	// Needs is what the call waits for.
	Needs Needs
}

// String describes the call and what it waits for.
func (b Blocked) String() string {
	caller := ""
	if b.Caller != "" {
		caller = " of " + b.Caller
	}
	return fmt.Sprintf("%v%s has %d of %d items and has waited %v for %v",
		b.Op, caller, b.Done, b.Total, b.Waited.Round(time.Millisecond), b.Needs)
}

// Op is an operation that a limiter may block.
type Op uint8

// The operations.
const (
	Insert Op = iota
	Draw
)

// String returns the operation's name.
func (o Op) String() string {
	if o == Insert {
		return "insert"
	}
	return "sample"
}

// Needs is what has to happen before the limiter lets a call go on to its end: as many inserts or
// samples by others. All is zero if nothing has to.
type Needs struct {
	Inserts, Samples uint64
	// Priority means that all items have the priority zero: one needs a higher one.
	Priority bool
	// From is the caller that inserted or sampled last, and is therefore likely to be the one that
	// is waited for; empty if it has no name. Ago is how long ago that was.
	From string
	Ago  time.Duration
}

// Any reports whether anything is needed.
func (n Needs) Any() bool { return n.Inserts > 0 || n.Samples > 0 || n.Priority }

// String describes the need.
func (n Needs) String() string {
	var s string
	switch {
	case n.Priority:
		return "an item with a priority above zero"
	case n.Inserts > 0:
		s = count(n.Inserts, "more insert")
	case n.Samples > 0:
		s = count(n.Samples, "more sample")
	default:
		return "calls before it"
	}
	if n.From != "" {
		s += fmt.Sprintf(" (the last was by %s, %v ago)", n.From, n.Ago.Round(time.Millisecond))
	}
	return s
}

func count(n uint64, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
