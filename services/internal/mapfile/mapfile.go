// Package mapfile creates and opens the files that services map into memory: files of fixed size
// that only their user can access, and whose space is reserved before it is used. It requires
// Linux; elsewhere all functions return [ErrUnsupported].
package mapfile

import "errors"

// Errors that a caller may act on.
var (
	// ErrUnsupported means that the platform lacks what mapped files need.
	ErrUnsupported = errors.New("memory-mapped files need Linux on a little-endian, 64-bit machine")
	// ErrForeign means that users other than the current one could access a file.
	ErrForeign = errors.New("the file is not a regular file that only its user can access")
	// ErrSpace means that the file system has too little space for a file.
	ErrSpace = errors.New("the file system has too little space")
	// ErrLocked means that a lock is held.
	ErrLocked = errors.New("the lock is held by another process or open file")
)

// Access selects the permissions of a mapping.
type Access bool

// Read-only, or readable and writable.
const (
	ReadOnly  Access = false
	ReadWrite Access = true
)

// ID identifies a file of the machine for as long as it is open.
type ID struct{ Device, Inode uint64 }

// Status is the result of [Stat].
type Status struct {
	ID   ID
	Size uint64
	// Links is 0 once the file was removed.
	Links uint64
}
