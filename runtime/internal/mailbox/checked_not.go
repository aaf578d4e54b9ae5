//go:build !invariants

package mailbox

const checked = false
