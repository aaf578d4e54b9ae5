//go:build unguarded

package raylink_test

// hostileGuarded is off: see hostile_guarded_ext_test.go.
const hostileGuarded = false
