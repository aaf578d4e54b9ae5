//go:build !unguarded

package rundir

// guarded is false only in builds that show that tests would detect a violation: there a sweep
// ignores locks.
const guarded = true
