//go:build !unguarded

package lease

import "time"

// absence is by how much a tick may be late before it counts as an absence of the watcher itself.
func absence(grace time.Duration) time.Duration { return grace / 2 }
