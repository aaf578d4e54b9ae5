//go:build unguarded

package store

const guarded = false
