// Package soak has the standing test of a system under stress, see TestSoak: `make test-soak`, or
// longer by `make test-soak SOAK=10m`.
package soak
