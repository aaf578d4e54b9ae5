// Package programs gets executables to the machines that are to run them: it names a program by its
// SHA-256, sends it in chunks, and caches it where it is run.
//
// What it promises:
//
//   - A path that [Cache.Get] returns is that of a file with the SHA-256 that was asked for. What
//     came over the wire, what was there after an interruption, and what has been in the cache
//     since an earlier process are all verified as a whole before they are run.
//   - One transfer: concurrent Gets of a program share it, in one process and among the processes
//     that share the directory. Its bytes are kept when it is interrupted, also by kill -9, and the
//     next one continues there.
//   - The cache's files never exceed its bound, transfers in progress included. The least recently
//     used program leaves first, and never one in use.
//
// Other processes of the same user are trusted: one of them could change a file between its
// verification and its start. Other users can't reach the directory.
//
// The package knows no network: the caller provides a [Fetch] on one side, and sends what
// [File.Chunk] returns on the other. It is divided into
//
//	programs.go    what a program is, and the errors
//	platform.go    the platform of an executable
//	file.go        the sending side: an open executable and its identity
//	installed.go   programs that are installed here, by name
//	cache.go       Get: shared by its callers, held until the release
//	transfer.go    one transfer: resumed, verified, completed
//	space.go       the bound: who leaves
package programs

import (
	"crypto/sha256"
	"errors"
	"fmt"
)

// ChunkSize is the size of the chunks in which a program is sent, in bytes. It is large enough that
// the costs of a message don't matter, and small enough for calls that share its connection.
const ChunkSize = 256 << 10

// ErrClosed is the error of a [Cache.Get] whose cache is closed.
var ErrClosed = errors.New("the cache is closed")

// Identity says which program is meant. It is comparable.
type Identity struct {
	// SHA256 is the hash of the file, and Size its length in bytes.
	SHA256 [sha256.Size]byte
	Size   int64
	// GOOS and GOARCH are the platform that the file is for.
	GOOS, GOARCH string
	// Name is the base name of the file, for messages.
	Name string
}

// HashError means that what was fetched is not the program that was asked for.
type HashError struct {
	Want, Got [sha256.Size]byte
	// From is where it came from, in the caller's words.
	From string
}

// Error has both hashes.
func (e *HashError) Error() string {
	return fmt.Sprintf("what came from %s has the SHA-256 %x, and not %x: it was removed", e.From, e.Got, e.Want)
}

// SpaceError means that there is too little space for a program: in the cache's bound, or on its
// disk.
type SpaceError struct {
	// Needed is the size of the program, and Available what it could have had, in bytes.
	Needed, Available int64
	// Where says what lacks the space.
	Where string
	// Err is the error of the operating system. It is nil if the cache's bound is what lacks.
	Err error
}

// Error says how much space there is.
func (e *SpaceError) Error() string {
	text := fmt.Sprintf("%d bytes are needed, and %s has %d available", e.Needed, e.Where, e.Available)
	if e.Err != nil {
		text += ": " + e.Err.Error()
	}
	return text
}

// Unwrap returns the error of the operating system.
func (e *SpaceError) Unwrap() error { return e.Err }
