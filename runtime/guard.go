//go:build !unguarded

package runtime

// guarded makes the copies of WithCopy, and counts what HTTP messages hold. The build tag
// `unguarded` takes that away, to show that the seals and TestHostile notice.
const guarded = true
