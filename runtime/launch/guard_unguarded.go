//go:build unguarded

package launch

const guarded = false
