//go:build !unguarded

package mailbox

// guarded keeps a turn that is over from being lent. The build tag `unguarded` takes that away, to
// show that the checkers notice.
const guarded = true
