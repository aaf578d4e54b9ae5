//go:build invariants

package mailbox

// checked makes every step check what must hold between steps.
const checked = true
