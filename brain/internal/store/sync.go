//go:build !unguarded

package store

import "github.com/cockroachdb/pebble/v2"

// writeOptions makes a commit wait for the disk. Without it the end of the log is in this process's
// memory, and dies with it.
func writeOptions() *pebble.WriteOptions { return pebble.Sync }
