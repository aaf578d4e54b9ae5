//go:build unguarded

package store

import "github.com/cockroachdb/pebble/v2"

// writeOptions leaves the guard out, for the test that shows what it is good for.
func writeOptions() *pebble.WriteOptions { return pebble.NoSync }
