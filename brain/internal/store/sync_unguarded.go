//go:build unguarded

package store

import "github.com/cockroachdb/pebble/v2"

// writeOptions disables the sync, for the test that shows what it is needed for.
func writeOptions() *pebble.WriteOptions { return pebble.NoSync }
