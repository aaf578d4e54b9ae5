//go:build !unguarded

package raylink_test

// hostileGuarded is set if HTTP messages are counted: see runtime/guard.go.
const hostileGuarded = true
