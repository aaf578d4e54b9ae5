//go:build !unguarded

package runtime

// guarded makes the copies of WithCopy. The build tag `unguarded` takes them away, to show that the seals notice.
const guarded = true
