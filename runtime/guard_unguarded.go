//go:build unguarded

package runtime

const guarded = false
