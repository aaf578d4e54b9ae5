//go:build !unguarded

package generator

// guarded says that names yield. The tag unguarded builds a plugin whose names don't, to show that
// its tests notice.
const guarded = true
