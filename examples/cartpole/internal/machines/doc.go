// Package machines has the test that trains CartPole over several machines, which `make
// demo-machines` runs for people to watch: see machines_test.go.
package machines
