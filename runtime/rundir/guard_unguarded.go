//go:build unguarded

package rundir

const guarded = false
