//go:build !unguarded

package launch

// guarded is false only in builds that show that tests would detect a violation: there a parent
// accepts any build.
const guarded = true
