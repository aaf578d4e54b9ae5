package store

import "github.com/cockroachdb/pebble/v2"

// writeOptions makes a commit wait for the disk. Otherwise the end of the log would be only in the
// memory of this process, and be lost with it.
func writeOptions() *pebble.WriteOptions { return pebble.Sync }
