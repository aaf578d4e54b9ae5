//go:build !unguarded

package mailbox

// guarded prevents suspending a turn whose work has ended. The build tag `unguarded` disables it,
// to show that the tests detect it.
const guarded = true
