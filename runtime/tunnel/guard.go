//go:build !unguarded

package tunnel

// guarded keeps requests of one order in it, streams within their credit, and memory with its message until that is collected.
// The build tag `unguarded` takes that away, to show
// that the checkers notice.
const guarded = true
