package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	benchv1 "github.com/raylink/raylink/bench/gen/bench/v1"
	"github.com/raylink/raylink/bench/gen/bench/v1/benchv1raylink"
	"github.com/raylink/raylink/runtime"
)

// batch is the number of calls in this process that are timed together: one is too short for the
// clock.
const batch = 1000

// local measures calls within this process. The histogram is of the means of batches.
func (l *load) local() (outcome, error) {
	c, ok := l.client.(*raylinkClient)
	if !ok {
		return outcome{}, errors.New("only RayLink supports calls within a process")
	}
	ctx, cancel := context.WithTimeout(context.Background(), callDeadline)
	defer cancel()
	call, err := c.local(ctx, l.job.Kind)
	if err != nil {
		return outcome{}, err
	}
	req := &benchv1.EchoRequest{Payload: l.payload}
	h := new(histogram)
	before := mallocs()
	begun := time.Now()
	for since := time.Duration(0); since < l.job.Duration; {
		for range batch {
			if _, err := call(ctx, req); err != nil {
				return outcome{}, err
			}
		}
		now := time.Since(begun)
		h.record(int64(now-since) / batch)
		since = now
	}
	o := outcomeOf(h, time.Since(begun))
	o.Ops *= batch
	o.Mallocs = mallocs() - before
	return o, nil
}

// local returns the function to call: of a node in this process, or of a plain interface with a
// context value per call.
func (c *raylinkClient) local(ctx context.Context, k kind) (func(context.Context, *benchv1.EchoRequest) (*benchv1.EchoResponse, error), error) {
	if k == plain {
		var node benchv1raylink.EchoNode = echoNode{}
		return func(ctx context.Context, req *benchv1.EchoRequest) (*benchv1.EchoResponse, error) {
			return plainCall(context.WithValue(ctx, callKey{}, req), node, req)
		}, nil
	}
	if c.localNode == nil {
		node, err := benchv1raylink.CreateEcho(ctx, c.rt, runtime.ParentProcess())
		if err != nil {
			return nil, err
		}
		c.localNode = node
	}
	if k == concurrent {
		return c.localNode.EchoConcurrent, nil
	}
	return c.localNode.Echo, nil
}

type callKey struct{}

// plainCall calls an interface method. It is not inlined, so that the compiler can't devirtualize
// it.
//
//go:noinline
func plainCall(ctx context.Context, node benchv1raylink.EchoNode, req *benchv1.EchoRequest) (*benchv1.EchoResponse, error) {
	return node.Echo(ctx, req)
}

func (l *load) nodes() (outcome, error) {
	c, ok := l.client.(*raylinkClient)
	if !ok {
		return outcome{}, errors.New("only RayLink supports nodes")
	}
	var err error
	l.keepAlive, err = c.nodes(l.job.Inflight)
	return outcome{Ops: uint64(l.job.Inflight)}, err
}

// stuckPairs is the number of pairs of measurements of the row with a stuck stream.
const stuckPairs = 15

// stuck measures calls with and without a stream on the same connection that the server fills and
// the client does not read. The ratio is the median over the pairs; the times are those with the
// stream.
func (l *load) stuck() (outcome, error) {
	sh, ok := l.keepAlive.(sharer)
	if !ok {
		return outcome{}, errors.New("connections of this system carry only one call at a time")
	}
	d := min(l.job.Duration, 200*time.Millisecond)
	var ratios []float64
	var withStream outcome
	for i := range stuckPairs {
		var without, with outcome
		var err error
		measure := func(stuck bool) {
			if err != nil {
				return
			}
			if !stuck {
				without, err = concurrently(l.callers, d)
				return
			}
			end, ferr := sh.flood(1 << 10)
			if ferr != nil {
				err = ferr
				return
			}
			defer end()
			// Lets the stream fill all buffers.
			if _, err = concurrently(l.callers, d/4); err == nil {
				with, err = concurrently(l.callers, d)
			}
		}
		measure(i%2 == 0)
		measure(i%2 != 0)
		if err != nil {
			return outcome{}, fmt.Errorf("pair %d: %w", i, err)
		}
		ratios = append(ratios, float64(with.Ops)/with.Seconds/(float64(without.Ops)/without.Seconds))
		withStream = with
	}
	slices.Sort(ratios)
	withStream.Ratio = median(ratios)
	return withStream, nil
}
