//go:build unguarded

package tree

// keepsIndices leaves the guard out, for the test that shows what it is good for.
const keepsIndices = false
