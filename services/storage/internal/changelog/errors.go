package changelog

import (
	"fmt"
	"slices"
	"strings"
)

// InUseError is the error for a directory that another process, or another log in this one, has
// open.
type InUseError struct {
	Dir string
	// PID is the process, 0 if it is not known.
	PID int
	// Err is the reason, or nil.
	Err error
}

// Error implements error.
func (e *InUseError) Error() string {
	if e.PID != 0 {
		return fmt.Sprintf("the directory %s is in use by another storage (pid %d); choose another directory, or end that one", e.Dir, e.PID)
	}
	return fmt.Sprintf("the directory %s is in use by another storage; choose another directory, or end that one", e.Dir)
}

// Unwrap returns the file system's error.
func (e *InUseError) Unwrap() error { return e.Err }

// FormatError is the error for a directory that was written by a version of this program that this
// one does not support.
type FormatError struct {
	Dir string
	// Format is the version that was found, Known the newest that this program supports.
	Format, Known uint64
	// Files is set if it is the format of Pebble's files, rather than that of the records' meaning.
	Files bool
}

// Error implements error.
func (e *FormatError) Error() string {
	what := "format"
	if e.Files {
		what = "files of the format"
	}
	return fmt.Sprintf("the directory %s has %s %d, and this program knows formats up to %d: it was written by a newer version; "+
		"use that, or another directory", e.Dir, what, e.Format, e.Known)
}

// DamagedError is the error for a directory whose records cannot all be read. Nothing in it was
// removed.
type DamagedError struct {
	Dir string
	// What says what is damaged, and where.
	What string
	// Err is the reason, or nil.
	Err error
}

// Error implements error.
func (e *DamagedError) Error() string {
	what := e.What
	if e.Err != nil {
		what += ": " + oneLine(e.Err)
	}
	return fmt.Sprintf("the data in the directory %s are damaged: %s; restore them from a copy, or use another directory", e.Dir, what)
}

// oneLine returns an error's text without the lines that Pebble adds to it for its own reports, and
// without repetitions.
func oneLine(err error) string {
	var kept []string
	for line := range strings.SplitSeq(err.Error(), "\n") {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "<") && !slices.Contains(kept, line) {
			kept = append(kept, line)
		}
	}
	return strings.Join(kept, "; ")
}

// Unwrap returns the error that showed the damage, if there is one.
func (e *DamagedError) Unwrap() error { return e.Err }

// FullError is the error of a write for which the disk, or the quota on it, has no space.
type FullError struct {
	Dir string
	// Err is the reason, or nil.
	Err error
}

// Error implements error.
func (e *FullError) Error() string {
	return fmt.Sprintf("the disk of the directory %s is full, free space on it: %v", e.Dir, e.Err)
}

// Unwrap returns the file system's error.
func (e *FullError) Unwrap() error { return e.Err }
