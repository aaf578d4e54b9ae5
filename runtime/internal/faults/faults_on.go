//go:build faults

package faults

import "os"

//nolint:gochecknoglobals // constant after start-up
var (
	chosen = os.Getenv("RAYLINK_FAULT")

	Interruption = chosen == "interruption"
	Overtaking   = chosen == "overtaking"
	Repetition   = chosen == "repetition"
	Deafness     = chosen == "deafness"
	Uncancelled  = chosen == "uncancelled"
)
