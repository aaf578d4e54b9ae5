package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connectproto"

	"github.com/raylink/raylink"
	counterv1 "github.com/raylink/raylink/examples/counter/gen/counter/v1"
	"github.com/raylink/raylink/examples/counter/gen/counter/v1/counterv1raylink"
	"github.com/raylink/raylink/runtime"
)

// tour calls a node in every way.
func tour(ctx context.Context, rt *raylink.Runtime) error {
	// By default a node has a process of its own. An alias is a second name to find it by.
	counter, err := counterv1raylink.CreateCounter(ctx, rt, &counterv1.CounterConfig{Start: 1, Max: 100}, runtime.WithAlias("the-counter"))
	if err != nil {
		return err
	}
	fmt.Printf("created %s\n", counter.Ref().Path())

	// A sync call waits for its response.
	sum, err := counter.Add(ctx, &counterv1.AddRequest{By: 2})
	if err != nil {
		return err
	}
	fmt.Printf("added 2: %d\n", sum.GetSum())

	// An async call returns a future. Calls made one after the other run in that order.
	var later []*runtime.Future[*counterv1.AddResponse]
	for by := range int64(3) {
		later = append(later, counter.AddAsync(ctx, &counterv1.AddRequest{By: by + 1}))
	}
	sums, err := runtime.Gather(ctx, later...)
	if err != nil {
		return err
	}
	fmt.Printf("added 1, 2 and 3 without waiting: %d, %d, %d\n", sums[0].GetSum(), sums[1].GetSum(), sums[2].GetSum())

	// Errors have a code, a text, and details, wherever the node lives.
	if _, err = counter.Add(ctx, &counterv1.AddRequest{By: 1000}); err == nil {
		return errors.New("1000 more were within the limits")
	}
	fmt.Printf("refused: %v (at most %d)\n", err, limitsOf(err).GetMax())

	// A deadline ends the call, and the method's context.
	hurried, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	_, err = counter.WaitFor(hurried, &counterv1.WaitForRequest{AtLeast: 50})
	fmt.Printf("waited for 50: %v\n", connect.CodeOf(err))

	// Every program in the system can find the node, by its path, its alias or its nid.
	found, err := counterv1raylink.FindCounter(ctx, rt, runtime.Alias("the-counter"))
	if err != nil {
		return err
	}
	return streams(ctx, found)
}

// streams shows the three shapes of stream.
func streams(ctx context.Context, counter *counterv1raylink.Counter) error {
	watch, err := counter.Watch(ctx, &counterv1.WatchRequest{})
	if err != nil {
		return err
	}
	defer func() { _ = watch.Close() }() // otherwise it goes on until the node ends
	first, err := watch.Receive()
	if err != nil {
		return err
	}
	fmt.Printf("watching: %d\n", first.GetSum())

	sum, err := counter.Sum(ctx)
	if err != nil {
		return err
	}
	for by := range int64(4) {
		if err := sum.Send(&counterv1.SumRequest{By: by}); err != nil {
			break // CloseAndReceive returns the error
		}
	}
	res, err := sum.CloseAndReceive()
	if err != nil {
		return err
	}
	fmt.Printf("added %d numbers at once: %d\n", res.GetCount(), res.GetSum())

	second, err := watch.Receive()
	if err != nil {
		return err
	}
	fmt.Printf("watching: %d\n", second.GetSum())

	tally, err := counter.Tally(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = tally.Close() }()
	for _, by := range []int64{20, -5} {
		if err := tally.Send(&counterv1.TallyRequest{By: by}); err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		res, err := tally.Receive()
		if err != nil {
			return err
		}
		fmt.Printf("tallied %d: %d\n", by, res.GetSum())
	}
	return nil
}

// limitsOf is the detail of an OutOfRange error; nil for other errors.
func limitsOf(err error) *counterv1.Limits {
	e, ok := errors.AsType[*connect.Error](err)
	if !ok {
		return nil
	}
	for _, d := range e.Details() {
		msg, err := connectproto.UnmarshalErrorDetail(d)
		if limits, ok := msg.(*counterv1.Limits); ok && err == nil {
			return limits
		}
	}
	return nil
}
