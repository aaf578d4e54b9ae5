//go:build unguarded

package ring

const guarded = false
