//go:build !unguarded

package store

// guarded is false under the build tag `unguarded`: then an older version replaces a newer one, and readers are told of a
// version before it is written, into a file that they can open. The tests' checker must then find both.
const guarded = true
