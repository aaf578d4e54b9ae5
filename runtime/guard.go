//go:build !unguarded

package runtime

// guarded enables the copies of WithCopy and the limits of memory for HTTP messages. The build tag
// `unguarded` disables them, to show that the fingerprints and TestHostile detect that.
const guarded = true
