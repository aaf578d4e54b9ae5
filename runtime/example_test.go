package runtime_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connectproto"

	nodev1 "github.com/raylink/raylink/gen/raylink/node/v1"
	storagev1 "github.com/raylink/raylink/gen/raylink/storage/v1"
	"github.com/raylink/raylink/gen/raylink/storage/v1/storagev1raylink"
	contractv1 "github.com/raylink/raylink/internal/contract/gen/contract/v1"
	"github.com/raylink/raylink/internal/contract/gen/contract/v1/contractv1raylink"
	"github.com/raylink/raylink/runtime"
)

// counts is a fake of the storage: it implements only what its callers need.
type counts struct {
	storagev1raylink.UnimplementedStorageNode

	sum int64
	// down is how many calls of Get fail, as if the node could not be reached.
	down int
}

func (c *counts) Incr(context.Context, *storagev1.IncrRequest) (*storagev1.IncrResponse, error) {
	c.sum++
	return &storagev1.IncrResponse{Value: value(c.sum)}, nil
}

func (c *counts) Get(ctx context.Context, req *storagev1.GetRequest) (*storagev1.GetResponse, error) {
	if c.down > 0 {
		c.down--
		return nil, connect.NewError(connect.CodeUnavailable, "try again")
	}
	if req.GetKey() == "tenant" {
		fmt.Println("tenant:", runtime.CallFrom(ctx).Metadata().Get("tenant"))
	}
	return &storagev1.GetResponse{Value: value(c.sum)}, nil
}

func (c *counts) Delete(_ context.Context, req *storagev1.DeleteRequest) (*storagev1.DeleteResponse, error) {
	err := connect.Errorf(connect.CodeFailedPrecondition, "%s is in use", req.GetKey())
	detail, derr := connectproto.NewErrorDetail(&nodev1.Hop{Node: "learner-0"})
	if derr != nil {
		return nil, derr
	}
	return nil, err.WithDetail(detail)
}

func value(n int64) *storagev1.Value {
	return &storagev1.Value{Kind: &storagev1.Value_Int64Value{Int64Value: n}}
}

// A test gives its code a fake behind the same handle that a node has.
func Example_fake() {
	fake := storagev1raylink.NewLocalStorage(&counts{sum: 6})
	res, err := fake.Incr(context.Background(), &storagev1.IncrRequest{Key: "games"})
	fmt.Println(res.GetValue().GetInt64Value(), err)
	// Output: 7 <nil>
}

// Asynchronous calls of one goroutine run in the order in which they were made.
func ExampleGather() {
	ctx := context.Background()
	store := storagev1raylink.NewLocalStorage(&counts{})
	var calls []*runtime.Future[*storagev1.IncrResponse]
	for range 3 {
		calls = append(calls, store.IncrAsync(ctx, &storagev1.IncrRequest{Key: "games"}))
	}
	results, err := runtime.Gather(ctx, calls...)
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, res := range results {
		fmt.Println(res.GetValue().GetInt64Value())
	}
	// Output:
	// 1
	// 2
	// 3
}

func ExampleWithMetadata() {
	ctx := runtime.WithMetadata(context.Background(), "tenant", "a")
	_, err := storagev1raylink.NewLocalStorage(&counts{}).Get(ctx, &storagev1.GetRequest{Key: "tenant"})
	fmt.Println(err)
	// Output:
	// tenant: a
	// <nil>
}

// The schema of the storage marks Get as idempotent.
func ExampleRetry() {
	ctx := context.Background()
	store := storagev1raylink.NewLocalStorage(&counts{sum: 5, down: 2}).Intercepted(runtime.Retry(runtime.RetryPolicy{}))
	res, err := store.Get(ctx, &storagev1.GetRequest{Key: "games"})
	fmt.Println(res.GetValue().GetInt64Value(), err)

	store = storagev1raylink.NewLocalStorage(&counts{down: 9}).Intercepted(runtime.Retry(runtime.RetryPolicy{MaxAttempts: 2}))
	_, err = store.Get(ctx, &storagev1.GetRequest{Key: "games"})
	fmt.Println(err)
	// Output:
	// 5 <nil>
	// unavailable: try again (after 2 attempts)
}

// An error keeps its code, message and details on every way.
func Example_errorDetails() {
	_, err := storagev1raylink.NewLocalStorage(&counts{}).Delete(context.Background(), &storagev1.DeleteRequest{Key: "games"})
	e, ok := errors.AsType[*connect.Error](err)
	if !ok {
		fmt.Println(err)
		return
	}
	fmt.Println(e.Code(), "-", e.Message())
	for _, d := range e.Details() {
		detail, err := connectproto.UnmarshalErrorDetail(d)
		if err != nil {
			fmt.Println(err)
			return
		}
		if user, ok := detail.(*nodev1.Hop); ok {
			fmt.Println("used by", user.GetNode())
		}
	}
	// Output:
	// failed_precondition - games is in use
	// used by learner-0
}

// talker has a server stream.
type talker struct {
	contractv1raylink.UnimplementedProbeNode
}

func (talker) Count(_ context.Context, req *contractv1.CountRequest, stream contractv1raylink.ProbeCountServerStream) error {
	for i := range req.GetTo() {
		if err := stream.Send(&contractv1.CountResponse{Number: i + 1}); err != nil {
			return err
		}
	}
	return nil
}

func ExampleServerStreamingClient() {
	stream, err := contractv1raylink.NewLocalProbe(talker{}).Count(context.Background(), &contractv1.CountRequest{To: 2})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer stream.Close() //nolint:errcheck // it was received to its end
	for {
		res, err := stream.Receive()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			fmt.Println(err)
			return
		}
		fmt.Println(res.GetNumber())
	}
	// Output:
	// 1
	// 2
}

// A client interceptor answers repeated calls from a cache.
func ExampleClientInterceptor() {
	var known sync.Map
	cache := func(next runtime.ClientInvoke) runtime.ClientInvoke {
		return func(ctx context.Context, in *runtime.ClientInvocation) error {
			req, ok := in.Request.(*storagev1.GetRequest)
			if !ok {
				return next(ctx, in)
			}
			if res, ok := known.Load(req.GetKey()); ok {
				in.Response = res.(*storagev1.GetResponse)
				return nil
			}
			err := next(ctx, in)
			if err == nil {
				known.Store(req.GetKey(), in.Response)
			}
			return err
		}
	}
	ctx := context.Background()
	store := storagev1raylink.NewLocalStorage(&counts{}).Intercepted(cache)
	for range 2 {
		res, err := store.Get(ctx, &storagev1.GetRequest{Key: "games"})
		fmt.Println(res.GetValue().GetInt64Value(), err)
		if _, err := store.Incr(ctx, &storagev1.IncrRequest{Key: "games"}); err != nil {
			fmt.Println(err)
			return
		}
	}
	// Output:
	// 0 <nil>
	// 0 <nil>
}

// journal is a node that answers once its entries are on disk, and writes many at once.
type journal struct {
	contractv1raylink.UnimplementedProbeNode

	// batch is guarded by the node's turns: the calls that wait for the next commit.
	batch *batch
}

type batch struct {
	sum       int64
	committed chan struct{}
}

func (j *journal) Add(ctx context.Context, req *contractv1.AddRequest) (*contractv1.AddResponse, error) {
	b := j.batch
	b.sum += req.GetBy()
	node := runtime.NodeFrom(ctx)
	node.EndTurn(ctx) // the calls behind this one join its batch
	select {
	case <-b.committed:
		return &contractv1.AddResponse{Sum: b.sum}, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (j *journal) Release(ctx context.Context, _ *contractv1.ReleaseRequest) (*contractv1.ReleaseResponse, error) {
	return nil, runtime.NodeFrom(ctx).Do(ctx, func(context.Context) error {
		close(j.batch.committed)
		j.batch = &batch{committed: make(chan struct{})}
		return nil
	})
}

// Calls of a method that gives its turn back share a commit. Here another method commits; a node
// would do so in a task.
func ExampleNode_EndTurn() {
	ctx := context.Background()
	node := contractv1raylink.NewLocalProbe(&journal{batch: &batch{committed: make(chan struct{})}})
	one := node.AddAsync(ctx, &contractv1.AddRequest{By: 1})
	two := node.AddAsync(ctx, &contractv1.AddRequest{By: 2})
	if _, err := node.Release(ctx, nil); err != nil {
		fmt.Println(err)
	}
	for _, call := range []*runtime.Future[*contractv1.AddResponse]{one, two} {
		res, err := call.Get(ctx)
		fmt.Println(res.GetSum(), err)
	}
	// Output:
	// 3 <nil>
	// 3 <nil>
}
