//go:build !unguarded

package raylink_test

// hostileGuarded says that HTTP messages are counted: see runtime/guard.go.
const hostileGuarded = true
