//go:build !race

package invariants

// RaceEnabled reports whether the build has the race detector.
const RaceEnabled = false
