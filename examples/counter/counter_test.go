package main

import (
	"context"
	"errors"
	"io"
	"math"
	"testing"
	"time"

	"connectrpc.com/connect/v2"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/raylink/raylink"
	counterv1 "github.com/raylink/raylink/examples/counter/gen/counter/v1"
	"github.com/raylink/raylink/examples/counter/gen/counter/v1/counterv1raylink"
)

// system starts a system for one test, whose nodes live in this process.
func system(t *testing.T) *raylink.Runtime {
	t.Helper()
	rt, err := raylink.Start(t.Context(), counterv1raylink.CounterType(newCounter), raylink.WithData(t.TempDir()))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, rt.Close()) })
	return rt
}

func create(t *testing.T, config *counterv1.CounterConfig) *counterv1raylink.Counter {
	t.Helper()
	counter, err := counterv1raylink.CreateCounter(t.Context(), system(t), config)
	require.NoError(t, err)
	return counter
}

func TestCounterStaysWithinItsLimits(t *testing.T) {
	t.Parallel()
	counter := create(t, &counterv1.CounterConfig{Start: 5, Min: -10, Max: 10})

	_, err := counter.Add(t.Context(), &counterv1.AddRequest{By: 6})
	require.Equal(t, connect.CodeOutOfRange, connect.CodeOf(err), "%v", err)
	assert.Equal(t, int64(10), limitsOf(err).GetMax())
	assert.Equal(t, int64(-10), limitsOf(err).GetMin())
	assert.Equal(t, int64(5), limitsOf(err).GetSum())

	_, err = counter.Add(t.Context(), &counterv1.AddRequest{By: math.MinInt64})
	require.Equal(t, connect.CodeOutOfRange, connect.CodeOf(err), "what would wrap around is out of range too: %v", err)

	sum, err := counter.Get(t.Context(), nil)
	require.NoError(t, err)
	assert.Equal(t, int64(5), sum.GetSum(), "a refused call changed something")
}

func TestCounterThatCannotStart(t *testing.T) {
	t.Parallel()
	_, err := counterv1raylink.CreateCounter(t.Context(), system(t), &counterv1.CounterConfig{Start: 7, Max: 6})
	require.Equal(t, connect.CodeInvalidArgument, connect.CodeOf(err), "%v", err)
	assert.ErrorContains(t, err, "can't start at 7 with limits of 0 to 6")
}

// TestCounterAgainstModel adds by every method that adds, and compares with plain arithmetic.
func TestCounterAgainstModel(t *testing.T) {
	t.Parallel()
	rt := system(t)
	rapid.Check(t, func(r *rapid.T) {
		ctx := t.Context()
		const limit = 50
		counter, err := counterv1raylink.CreateCounter(ctx, rt, &counterv1.CounterConfig{Min: -limit, Max: limit})
		require.NoError(t, err)
		defer func() { require.NoError(t, counter.Ref().Stop(ctx)) }()
		model := int64(0)
		by := rapid.Int64Range(-2*limit, 2*limit)
		check := func(how string, add, got int64, err error) {
			if sum := model + add; sum < -limit || sum > limit {
				require.Equal(t, connect.CodeOutOfRange, connect.CodeOf(err), "%s of %d to %d: %v", how, add, model, err)
				require.Equal(t, model, limitsOf(err).GetSum())
				return
			}
			require.NoError(t, err)
			model += add
			require.Equal(t, model, got, "%s of %d", how, add)
		}
		r.Repeat(map[string]func(*rapid.T){
			"": func(*rapid.T) {
				sum, err := counter.Get(ctx, nil)
				require.NoError(t, err)
				require.Equal(t, model, sum.GetSum())
			},
			"add": func(r *rapid.T) {
				n := by.Draw(r, "by")
				res, err := counter.Add(ctx, &counterv1.AddRequest{By: n})
				check("Add", n, res.GetSum(), err)
			},
			"sum": func(r *rapid.T) {
				var all int64
				stream, err := counter.Sum(ctx)
				require.NoError(t, err)
				numbers := rapid.SliceOfN(by, 0, 4).Draw(r, "numbers")
				for _, n := range numbers {
					all += n
					require.NoError(t, stream.Send(&counterv1.SumRequest{By: n}))
				}
				res, err := stream.CloseAndReceive()
				check("Sum", all, res.GetSum(), err)
				if err == nil {
					require.Len(t, numbers, int(res.GetCount()))
				}
			},
			"tally": func(r *rapid.T) {
				stream, err := counter.Tally(ctx)
				require.NoError(t, err)
				defer func() { require.NoError(t, stream.Close()) }()
				for _, n := range rapid.SliceOfN(by, 1, 4).Draw(r, "numbers") {
					require.NoError(t, stream.Send(&counterv1.TallyRequest{By: n}))
					res, err := stream.Receive()
					check("Tally", n, res.GetSum(), err)
					if err != nil {
						return // a stream ends with its error
					}
				}
				require.NoError(t, stream.CloseSend())
				_, err = stream.Receive()
				require.ErrorIs(t, err, io.EOF)
			},
		})
	})
}

func TestWaitForIsWokenByAdd(t *testing.T) {
	t.Parallel()
	counter := create(t, nil)
	later := counter.WaitForAsync(t.Context(), &counterv1.WaitForRequest{AtLeast: 3})
	for range 3 {
		select {
		case <-later.Done():
			t.Fatal("it did not wait")
		default:
		}
		_, err := counter.Add(t.Context(), &counterv1.AddRequest{By: 1})
		require.NoError(t, err)
	}
	res, err := later.Get(t.Context())
	require.NoError(t, err)
	assert.Equal(t, int64(3), res.GetSum())
}

func TestWaitForEndsWithItsDeadline(t *testing.T) {
	t.Parallel()
	counter := create(t, nil)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	_, err := counter.WaitFor(ctx, &counterv1.WaitForRequest{AtLeast: 1})
	require.Equal(t, connect.CodeDeadlineExceeded, connect.CodeOf(err), "%v", err)
}

func TestWatchSeesTheLastSum(t *testing.T) {
	t.Parallel()
	counter := create(t, &counterv1.CounterConfig{Start: 1})
	watch, err := counter.Watch(t.Context(), nil)
	require.NoError(t, err)
	first, err := watch.Receive()
	require.NoError(t, err)
	assert.Equal(t, int64(1), first.GetSum())
	for range 100 {
		_, err := counter.Add(t.Context(), &counterv1.AddRequest{By: 1})
		require.NoError(t, err)
	}
	for last := first.GetSum(); last != 101; {
		next, err := watch.Receive()
		require.NoError(t, err)
		require.Greater(t, next.GetSum(), last, "a watcher sees no sum twice, and none from before")
		last = next.GetSum()
	}
	require.NoError(t, watch.Close())

	bounded, err := counter.Watch(t.Context(), &counterv1.WatchRequest{Count: 1})
	require.NoError(t, err)
	_, err = bounded.Receive()
	require.NoError(t, err)
	_, err = bounded.Receive()
	require.ErrorIs(t, err, io.EOF)
}

// stuck is a fake counter for tests of callers: it has one method, and no system around it.
type stuck struct {
	counterv1raylink.UnimplementedCounterNode
}

func (stuck) Get(context.Context, *counterv1.GetRequest) (*counterv1.GetResponse, error) {
	return nil, errors.New("the hand is stuck")
}

func TestFakeBehindLocalStub(t *testing.T) {
	t.Parallel()
	counter := counterv1raylink.NewLocalCounter(stuck{})
	_, err := counter.Get(t.Context(), nil)
	require.ErrorContains(t, err, "the hand is stuck")
	_, err = counter.AddAsync(t.Context(), nil).Get(t.Context())
	require.Equal(t, connect.CodeUnimplemented, connect.CodeOf(err), "%v", err)
}
