package ring

import "unsafe" //nolint:depguard // the address of memory that is not accessed

// prefetchLines makes the processor load cache lines in order to write to them, one at least. It
// causes no page faults, wherever they are.
//
//go:noescape
func prefetchLines(at unsafe.Pointer, lines int)

// preloadLines makes the processor load cache lines in order to read them, one at least. It causes
// no page faults, wherever they are.
//
//go:noescape
func preloadLines(at unsafe.Pointer, lines int)
