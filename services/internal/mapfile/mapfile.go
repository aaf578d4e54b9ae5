// Package mapfile makes and opens the files that services map into memory: files of fixed size, which belong to the user alone
// and whose space is reserved before it is touched. It needs Linux; elsewhere everything is refused with [ErrUnsupported].
package mapfile

import "errors"

// What a caller may decide by.
var (
	// ErrUnsupported is the answer of systems that lack what is needed.
	ErrUnsupported = errors.New("memory-mapped files need Linux on a little-endian, 64-bit machine")
	// ErrForeign is a file that others could write to.
	ErrForeign = errors.New("the file is not a regular file of the user's alone")
	// ErrLocked is a lock that somebody else has.
	ErrLocked = errors.New("somebody else has the lock")
)

// Access says what may be done with a mapping.
type Access bool

// A mapping is read, or written as well.
const (
	ReadOnly  Access = false
	ReadWrite Access = true
)
