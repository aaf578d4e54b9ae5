//go:build unguarded

package generator

const guarded = false
