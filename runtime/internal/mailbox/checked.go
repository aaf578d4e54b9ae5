//go:build invariants

package mailbox

// checked enables the check of the invariants after every change.
const checked = true
