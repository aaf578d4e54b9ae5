//go:build race

package main

// raceEnabled says that the programs under test are to be built with the race detector, as the tests are.
const raceEnabled = true
