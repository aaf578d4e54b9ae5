//go:build unguarded

package tunnel

// guarded is off: see guard.go.
const guarded = false
