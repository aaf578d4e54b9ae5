//go:build !linux

package proctest

import "testing"

// WithOwnMounts skips the test.
func WithOwnMounts(t *testing.T) bool {
	t.Helper()
	t.Skip("skipped: it needs Linux")
	return false
}

// Mount does nothing.
func Mount(*testing.T, string, int) {}
