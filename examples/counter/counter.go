package main

import (
	"context"
	"errors"
	"io"
	"math"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connectproto"

	counterv1 "github.com/raylink/raylink/examples/counter/gen/counter/v1"
	"github.com/raylink/raylink/examples/counter/gen/counter/v1/counterv1raylink"
	"github.com/raylink/raylink/runtime"
)

// counter implements the generated interface CounterNode.
type counter struct {
	node *runtime.Node
	min  int64
	max  int64

	// Turns guard the fields below: a unary method holds one while it runs; concurrent methods and
	// streams take one with node.Do.

	sum int64
	// changed is closed and replaced when the sum changes.
	changed chan struct{}
}

// newCounter sets up a new node in its own process. Its error is returned by CreateCounter.
func newCounter(_ context.Context, node *runtime.Node, config *counterv1.CounterConfig) (counterv1raylink.CounterNode, error) {
	c := &counter{node: node, min: math.MinInt64, max: math.MaxInt64, sum: config.GetStart(), changed: make(chan struct{})}
	if config.GetMin() != 0 || config.GetMax() != 0 {
		c.min, c.max = config.GetMin(), config.GetMax()
	}
	if c.sum < c.min || c.sum > c.max {
		return nil, connect.Errorf(connect.CodeInvalidArgument, "a counter can't start at %d with limits of %d to %d", c.sum, c.min, c.max)
	}
	return c, nil
}

// Add implements CounterNode.
func (c *counter) Add(_ context.Context, req *counterv1.AddRequest) (*counterv1.AddResponse, error) {
	if err := c.add(req.GetBy()); err != nil {
		return nil, err
	}
	return &counterv1.AddResponse{Sum: c.sum}, nil
}

// Get implements CounterNode.
func (c *counter) Get(context.Context, *counterv1.GetRequest) (*counterv1.GetResponse, error) {
	return &counterv1.GetResponse{Sum: c.sum}, nil
}

// WaitFor implements CounterNode.
func (c *counter) WaitFor(ctx context.Context, req *counterv1.WaitForRequest) (*counterv1.WaitForResponse, error) {
	for {
		sum, changed, err := c.look(ctx)
		if err != nil {
			return nil, err
		}
		if sum >= req.GetAtLeast() {
			return &counterv1.WaitForResponse{Sum: sum}, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			// The caller's deadline or cancellation: it gets DeadlineExceeded or Canceled.
			return nil, ctx.Err()
		}
	}
}

// Watch implements CounterNode.
func (c *counter) Watch(ctx context.Context, req *counterv1.WatchRequest, stream counterv1raylink.CounterWatchServerStream) error {
	for sent := uint32(0); req.GetCount() == 0 || sent < req.GetCount(); sent++ {
		sum, changed, err := c.look(ctx)
		if err != nil {
			return err
		}
		if err := stream.Send(&counterv1.WatchResponse{Sum: sum}); err != nil {
			return err
		}
		if sent+1 == req.GetCount() {
			break
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// Sum implements CounterNode.
func (c *counter) Sum(ctx context.Context, stream counterv1raylink.CounterSumServerStream) (*counterv1.SumResponse, error) {
	var all int64
	var count uint32
	for {
		req, err := stream.Receive()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		all += req.GetBy()
		count++
	}
	res := &counterv1.SumResponse{Count: count}
	err := c.node.Do(ctx, func(context.Context) error {
		err := c.add(all)
		res.Sum = c.sum
		return err
	})
	if err != nil {
		return nil, err
	}
	return res, nil
}

// Tally implements CounterNode.
func (c *counter) Tally(ctx context.Context, stream counterv1raylink.CounterTallyServerStream) error {
	for {
		req, err := stream.Receive()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		res := &counterv1.TallyResponse{}
		err = c.node.Do(ctx, func(context.Context) error {
			err := c.add(req.GetBy())
			res.Sum = c.sum
			return err
		})
		if err != nil {
			return err
		}
		if err := stream.Send(res); err != nil {
			return err
		}
	}
}

// add changes the sum, or returns the reason why it can't. The caller holds a turn.
func (c *counter) add(by int64) error {
	if by > 0 && c.sum > c.max-by || by < 0 && c.sum < c.min-by {
		detail, err := connectproto.NewErrorDetail(&counterv1.Limits{Min: c.min, Max: c.max, Sum: c.sum})
		if err != nil {
			return err
		}
		return connect.Errorf(connect.CodeOutOfRange, "%d and %d more would not be within %d to %d", c.sum, by, c.min, c.max).WithDetail(detail)
	}
	c.sum += by
	if by != 0 {
		close(c.changed)
		c.changed = make(chan struct{})
	}
	return nil
}

// look returns the sum, and a channel that is closed when the sum changes.
func (c *counter) look(ctx context.Context) (sum int64, changed <-chan struct{}, err error) {
	err = c.node.Do(ctx, func(context.Context) error {
		sum, changed = c.sum, c.changed
		return nil
	})
	return sum, changed, err
}
