package runtime

import (
	"context"
	"sync/atomic"
	"time"
)

// The goroutine that reads a connection runs a method itself where that costs less than to wake
// another one: where the method has been quick so far, and nobody who could be served meanwhile
// waits behind it for long. docs/speed.md has the figures.
const (
	// paceQuick is what a method may take while other calls are behind it on the connection, in the
	// mean: about what it costs to wake a goroutine on another processor.
	paceQuick = 5 * time.Microsecond
	// paceAlone is what it may take while none is.
	paceAlone = 20 * time.Microsecond
	// paceLeast is the least that a mean is, so that it can grow again.
	paceLeast = int64(100 * time.Nanosecond)
	// paceMost is the most that one run counts for, so that a pause of the machine's does not count
	// for long.
	paceMost = 64 * time.Microsecond
	// paceWeight is how many runs the mean is over, about.
	paceWeight = 8
	// paceLeap is how many times the mean one run counts for at the most: it takes some ten slow
	// runs, not one that was interrupted, to make a quick method a slow one.
	paceLeap = 4
)

// pace is how long a method of a node has taken of late: an exponentially weighted mean, in
// nanoseconds. A new one knows nothing, and takes the method for a slow one. Runs at the same time
// may lose each other's measurement, which does no harm.
type pace struct{ mean atomic.Int64 }

func (p *pace) took(d time.Duration) {
	mean := p.mean.Load()
	if mean == 0 {
		mean = int64(paceMost)
	}
	run := min(int64(d), int64(paceMost), paceLeap*mean)
	p.mean.Store(max(mean+(run-mean)/paceWeight, paceLeast))
}

// waited notes that the method waits for others.
func (p *pace) waited() { p.mean.Store(int64(paceMost)) }

// quick says whether the method may run on a reading goroutine.
func (p *pace) quick(moreBehind bool) bool {
	mean := time.Duration(p.mean.Load())
	return mean > 0 && (mean < paceQuick || mean < paceAlone && !moreBehind)
}

// started is what monotonic counts from.
var started = time.Now() //nolint:gochecknoglobals // an origin, never changed

// monotonic is the time since some origin. It costs half of what time.Now does.
func monotonic() time.Duration { return time.Since(started) }

// paceOf is the pace of the method that a job from a tunnel is for; nil for any other job.
func (n *Node) paceOf(j *job) *pace {
	m := j.cc.call.method
	if j.in == nil || m.builtin {
		return nil
	}
	return &n.paces[m.index]
}

// takeHere takes what a job needs to be run by the goroutine that reads its connection, if it is to
// be run there.
func (n *Node) takeHere(j *job, moreBehind bool) (bool, error) {
	pace := n.paceOf(j)
	if pace == nil || !pace.quick(moreBehind) || !n.isUp.Load() {
		return false, nil
	}
	cc := j.cc
	n.adopt(cc)
	if n.isConcurrent(cc.call.method) {
		return true, n.reserveBeside(cc)
	}
	if err := n.refuseCircle(cc); err != nil {
		return false, err
	}
	if !n.mailbox.TryTurn(&cc.ownTurn, cc) {
		return false, nil
	}
	cc.turn = &cc.ownTurn
	return true, nil
}

// serveHere runs a job for which takeHere has taken what it needs.
func (n *Node) serveHere(j *job) {
	cc := j.cc
	if n.isConcurrent(cc.call.method) {
		defer n.leaveBeside(cc)
	} else {
		defer cc.ownTurn.Release()
	}
	j.Run(cc.turn)
}

// waits is said before a node's code waits for others, with its context: it must not keep a reading
// goroutine from its work.
func waits(ctx context.Context) {
	for cc := callContextOf(ctx); cc != nil && cc.caller != nil; cc = callContextOf(cc.caller) {
		if w, ok := cc.caller.(interface{ Waits() bool }); ok {
			if w.Waits() {
				cc.node.paces[cc.call.method.index].waited()
			}
			return
		}
	}
}
