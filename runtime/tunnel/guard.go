//go:build !unguarded

package tunnel

// guarded keeps requests of one order in it, and streams within their credit. The build tag
// `unguarded` takes that away, to show that the checkers notice.
const guarded = true
