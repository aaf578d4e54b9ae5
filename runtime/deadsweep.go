package runtime

import (
	"log/slog"
	"sync"

	"github.com/raylink/raylink/runtime/rundir"
)

// deadSweeper removes the host directories of processes that were killed and could not do it
// themselves. Requests that arrive during a sweep share the next one, so that the end of many
// processes at once costs few sweeps.
type deadSweeper struct {
	mu sync.Mutex // held during a sweep

	count sync.Mutex // guards the fields below
	// asked counts the requests; served is how many of them a sweep has covered.
	asked, served uint64
}

// sweepDead removes what processes that are dead by now have left behind. It blocks until that is
// done.
func (h *Host) sweepDead() {
	d := &h.dead
	d.count.Lock()
	d.asked++
	mine := d.asked
	d.count.Unlock()
	d.mu.Lock()
	defer d.mu.Unlock()
	d.count.Lock()
	served := d.served >= mine
	if !served {
		d.served = d.asked
	}
	d.count.Unlock()
	if served {
		return
	}
	if err := rundir.SweepHosts(""); err != nil {
		h.log.Debug("sweeping what dead processes left", slog.Any("error", err))
	}
}
