package runtime

import (
	"sync/atomic"
	"time"
)

// The goroutine that reads a connection runs a method inline where that costs less than to wake
// another goroutine: where the method has been quick so far, and it does not delay calls behind it
// for long. docs/speed.md has the figures.
const (
	// inlineMean bounds the mean duration of a method that runs inline while other calls are behind
	// it on the connection: about the cost of waking a goroutine on another processor.
	inlineMean = 5 * time.Microsecond
	// inlineMeanAlone bounds the mean duration if no call is behind it.
	inlineMeanAlone = 20 * time.Microsecond
	// ewmaMin is the lower bound of a mean, so that it can grow again.
	ewmaMin = int64(100 * time.Nanosecond)
	// ewmaMaxSample is the upper bound of one sample, so that a pause of the machine does not count
	// for long.
	ewmaMaxSample = 64 * time.Microsecond
	// ewmaWeight is the inverse of the weight of one sample: the mean covers about that many runs.
	ewmaWeight = 8
	// ewmaMaxStep bounds one sample to a multiple of the mean: it takes about ten slow runs, not
	// one that was interrupted, to make a quick method a slow one.
	ewmaMaxStep = 4
)

// latencyEWMA is the latency EWMA (exponentially weighted moving average) of one method of a node,
// in nanoseconds. The zero value counts as slow. Concurrent updates may lose samples, which is
// harmless.
type latencyEWMA struct{ mean atomic.Int64 }

// observe adds the duration of one run.
func (l *latencyEWMA) observe(d time.Duration) {
	mean := l.mean.Load()
	if mean == 0 {
		mean = int64(ewmaMaxSample)
	}
	run := min(int64(d), int64(ewmaMaxSample), ewmaMaxStep*mean)
	l.mean.Store(max(mean+(run-mean)/ewmaWeight, ewmaMin))
}

// markSlow marks the method as slow, because it waits for others.
func (l *latencyEWMA) markSlow() { l.mean.Store(int64(ewmaMaxSample)) }

// quick reports whether the method may run inline on a reading goroutine.
func (l *latencyEWMA) quick(moreBehind bool) bool {
	mean := time.Duration(l.mean.Load())
	return mean > 0 && (mean < inlineMean || mean < inlineMeanAlone && !moreBehind)
}

// started is the origin of monotonic.
var started = time.Now() //nolint:gochecknoglobals // never modified

// monotonic is the time since started. It costs half as much as time.Now.
func monotonic() time.Duration { return time.Since(started) }
