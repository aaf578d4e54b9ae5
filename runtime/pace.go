package runtime

import (
	"context"
	"sync/atomic"
	"time"
)

// The goroutine that reads a connection runs a method inline where that costs less than to wake
// another goroutine: where the method has been quick so far, and it does not delay calls behind it
// for long. docs/speed.md has the figures.
const (
	// paceQuick bounds the mean duration of a method that runs inline while other calls are behind
	// it on the connection: about the cost of waking a goroutine on another processor.
	paceQuick = 5 * time.Microsecond
	// paceAlone bounds the mean duration if no call is behind it.
	paceAlone = 20 * time.Microsecond
	// paceLeast is the lower bound of a mean, so that it can grow again.
	paceLeast = int64(100 * time.Nanosecond)
	// paceMost is the upper bound of one sample, so that a pause of the machine does not count for
	// long.
	paceMost = 64 * time.Microsecond
	// paceWeight is the inverse of the weight of one sample: the mean covers about that many runs.
	paceWeight = 8
	// paceLeap bounds one sample to a multiple of the mean: it takes about ten slow runs, not one
	// that was interrupted, to make a quick method a slow one.
	paceLeap = 4
)

// pace is the latency EWMA (exponentially weighted moving average) of one method of a node, in
// nanoseconds. The zero value counts as slow. Concurrent updates may lose samples, which is
// harmless.
type pace struct{ mean atomic.Int64 }

func (p *pace) took(d time.Duration) {
	mean := p.mean.Load()
	if mean == 0 {
		mean = int64(paceMost)
	}
	run := min(int64(d), int64(paceMost), paceLeap*mean)
	p.mean.Store(max(mean+(run-mean)/paceWeight, paceLeast))
}

// waited marks the method as slow, because it waits for others.
func (p *pace) waited() { p.mean.Store(int64(paceMost)) }

// quick reports whether the method may run inline on a reading goroutine.
func (p *pace) quick(moreBehind bool) bool {
	mean := time.Duration(p.mean.Load())
	return mean > 0 && (mean < paceQuick || mean < paceAlone && !moreBehind)
}

// started is the origin of monotonic.
var started = time.Now() //nolint:gochecknoglobals // never modified

// monotonic is the time since started. It costs half as much as time.Now.
func monotonic() time.Duration { return time.Since(started) }

// paceOf is the latency EWMA of the method of a job from a tunnel; nil for any other job.
func (n *Node) paceOf(j *job) *pace {
	m := j.cc.call.method
	if j.in == nil || m.builtin {
		return nil
	}
	return &n.paces[m.index]
}

// takeHere decides whether a job runs inline, on the goroutine that reads its connection, and if so
// acquires the turn or the place beside the turns that it needs.
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

// serveHere runs inline a job for which takeHere has returned true.
func (n *Node) serveHere(j *job) {
	cc := j.cc
	if n.isConcurrent(cc.call.method) {
		defer n.leaveBeside(cc)
	} else {
		defer cc.ownTurn.Release()
	}
	j.Run(cc.turn)
}

// waits is called with the context of a node's code before it may block on others: then it must not
// occupy a reading goroutine.
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
