//go:build faults

package faults

import "os"

//nolint:gochecknoglobals // constant after start-up
var (
	chosen = os.Getenv("RAYLINK_FAULT")

	Interruption     = chosen == "interruption"
	Reordering       = chosen == "reordering"
	Redelivery       = chosen == "redelivery"
	LostNotification = chosen == "lostnotification"
	LostCancel       = chosen == "lostcancel"
)
