//go:build !faults

// Package faults disables safeguards of the product, one at a time, to show that the soak test
// detects it. It has an effect only in builds with the tag `faults`, in which RAYLINK_FAULT names
// the safeguard to disable.
package faults

const (
	// Interruption makes a caller that is interrupted while it reads a fragment treat that as the
	// end of the connection.
	Interruption = false
	// Overtaking lets a small request overtake a large one of the same caller to the same node.
	Overtaking = false
	// Repetition makes a call again that was lost with its connection.
	Repetition = false
	// Deafness suppresses the notification of a waiting caller that its context has ended.
	Deafness = false
	// Uncancelled suppresses the notification of a node that its caller has cancelled.
	Uncancelled = false
)
