//go:build !race

package main

// raceEnabled reports whether the tests, and so the programs under test, have the race detector.
const raceEnabled = false
