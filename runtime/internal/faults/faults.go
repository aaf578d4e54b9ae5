//go:build !faults

// Package faults leaves out guards of the product, to show that the soak test notices. Only builds
// with the tag `faults` have any: there RAYLINK_FAULT names the one that is left out.
package faults

const (
	// Interruption means: a caller that is interrupted while it reads a fragment takes that for the
	// end of the connection.
	Interruption = false
	// Overtaking means: a small request overtakes a large one of the same caller to the same node.
	Overtaking = false
	// Repetition means: a call that was lost with its connection is made once more.
	Repetition = false
	// Deafness means: a caller that waits is not notified of the end of its context.
	Deafness = false
	// Uncancelled means: a node is not notified that its caller has given up.
	Uncancelled = false
)
