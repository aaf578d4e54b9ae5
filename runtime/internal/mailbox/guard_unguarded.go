//go:build unguarded

package mailbox

const guarded = false
