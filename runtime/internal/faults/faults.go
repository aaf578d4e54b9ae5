//go:build !faults

// Package faults disables safeguards of the product, one at a time, to show that the soak test
// detects it. It has an effect only in builds with the tag `faults`, in which RAYLINK_FAULT names
// the safeguard to disable.
package faults

const (
	// Interruption makes a caller that is interrupted while it reads a fragment treat that as the
	// end of the connection.
	Interruption = false
	// Reordering lets a small request overtake a large one of the same caller to the same node.
	Reordering = false
	// Redelivery sends a call again after its connection was lost.
	Redelivery = false
	// LostNotification suppresses the notification of a waiting caller that its context has ended.
	LostNotification = false
	// LostCancel suppresses the notification of a node that its caller has cancelled.
	LostCancel = false
)
