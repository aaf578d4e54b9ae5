package lease

import "time"

// absence is by how much a tick must be late to count as an absence of the watcher itself: more
// than a busy machine delays it, whatever the grace.
func absence(grace time.Duration) time.Duration { return max(grace/2, 250*time.Millisecond) }
