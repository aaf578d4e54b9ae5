// Package clamp is what the tests of package mutants mutate.
package clamp

// Clamp returns the number nearest to n that is at least low and at most high.
func Clamp(n, low, high int) int {
	if n < low { // a comment
		return low
	}
	if n > high {
		return high
	}
	return n
}

// T has a method.
type T[E any] struct{ of E }

// Two returns 2.
func (*T[E]) Two() int { return 2 }
