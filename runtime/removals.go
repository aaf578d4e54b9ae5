package runtime

import (
	"log/slog"
	"sync"
)

// pendingRemovals logs removals of records that have to wait for an absent Brain: once when the
// first begins to wait, and once, with their number, when none waits any more. The zero value is
// ready for use.
type pendingRemovals struct {
	mu     sync.Mutex // guards what follows
	now    int        // the removals that wait
	passed int        // the removals that have waited since now was 0
}

// begin counts a removal that begins to wait after err.
func (p *pendingRemovals) begin(log *slog.Logger, cause string, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.now++
	if p.passed++; p.passed == 1 {
		log.Warn("records can't be removed now; their removal is tried again until Brain responds",
			slog.String("cause", cause), slog.Any("error", err))
	}
}

// end counts a removal that waits no longer. removed is false if it was given up because the host
// ends; Brain then removes the record with the host.
func (p *pendingRemovals) end(log *slog.Logger, removed bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.now--; p.now > 0 {
		return
	}
	if removed {
		log.Info("the records have been removed that had to wait for Brain", slog.Int("requests", p.passed))
	}
	p.passed = 0
}
