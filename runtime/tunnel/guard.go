//go:build !unguarded

package tunnel

// guarded enables the ordering of requests, the credit of streams and back-pressure. The build tag
// `unguarded` disables them, to show that the tests detect it.
const guarded = true
