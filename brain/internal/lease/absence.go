//go:build !unguarded

package lease

import "time"

// absence is by how much a tick may be late before it counts as an absence of the watcher itself:
// more than a busy machine makes it late, whatever the grace.
func absence(grace time.Duration) time.Duration { return max(grace/2, 250*time.Millisecond) }
