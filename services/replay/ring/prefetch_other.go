//go:build !amd64

package ring

import "unsafe" //nolint:depguard // as on amd64

// prefetchLines does nothing: it is an optimization that was measured on amd64 only.
func prefetchLines(unsafe.Pointer, int) {}

// preloadLines does nothing either.
func preloadLines(unsafe.Pointer, int) {}
