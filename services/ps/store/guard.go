//go:build !unguarded

package store

// guarded is false under the build tag "unguarded". Then an older version replaces a newer one, and
// a version's id is published before its file is complete. The tests' checker must find both
// faults.
const guarded = true
