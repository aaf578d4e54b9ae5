//go:build race

package raylink_test

const raceEnabled = true
