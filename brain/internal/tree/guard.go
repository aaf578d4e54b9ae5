//go:build !unguarded

package tree

// keepsIndices: the next indices are written down. Without them a restart would begin to count anew, and give the names of
// nodes that others may still speak of to new ones.
const keepsIndices = true
