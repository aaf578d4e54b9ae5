package raylink_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"

	"connectrpc.com/connect/v2"

	"github.com/raylink/raylink"
	storagev1 "github.com/raylink/raylink/gen/raylink/storage/v1"
	"github.com/raylink/raylink/gen/raylink/storage/v1/storagev1raylink"
	"github.com/raylink/raylink/runtime"
	"github.com/raylink/raylink/services/storage"
)

// quietly keeps the runs of the examples out of the user's directory.
func quietly() raylink.Option { return raylink.WithData(os.Getenv("RAYLINK_DATA")) }

// A program calls Init once, with its node types. A test, as this one, calls Start.
func Example() {
	ctx := context.Background()
	rt, err := raylink.Start(ctx, quietly())
	if err != nil {
		fmt.Println(err)
		return
	}
	defer rt.Close() //nolint:errcheck // nothing is left to do with its error
	node, err := storagev1raylink.CreateStorage(ctx, rt, &storagev1.StorageConfig{}, runtime.WithAlias("scores"))
	if err != nil {
		fmt.Println(err)
		return
	}
	if _, err := node.Incr(ctx, &storagev1.IncrRequest{Key: "games"}); err != nil {
		fmt.Println(err)
		return
	}
	res, err := node.Get(ctx, &storagev1.GetRequest{Key: "games"})
	fmt.Println(node.Ref().Path(), res.GetValue().GetInt64Value(), err)
	// Output: storage-1 1 <nil>
}

// A node gets a process of its own by Init's default, or by the option OwnProcess.
func ExampleStart_childProcess() {
	ctx := context.Background()
	rt, err := raylink.Start(ctx, quietly())
	if err != nil {
		fmt.Println(err)
		return
	}
	defer rt.Close() //nolint:errcheck // nothing is left to do with its error
	node, err := storagev1raylink.CreateStorage(ctx, rt, &storagev1.StorageConfig{}, runtime.OwnProcess())
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println("another process:", int(node.Ref().Record().GetHost().GetPid()) != os.Getpid())
	steps, err := storage.Add(ctx, storage.New(node), "steps", 42)
	fmt.Println(steps, err)
	// Output:
	// another process: true
	// 42 <nil>
}

// Interceptors wrap every call that the process makes.
func ExampleWithClientInterceptor() {
	ctx := context.Background()
	trace := func(next runtime.ClientInvoke) runtime.ClientInvoke {
		return func(ctx context.Context, in *runtime.ClientInvocation) error {
			if in.Node.Path() == "storage-0" {
				in.OnEnd(func(err error) { fmt.Println(in.Method.Name(), connect.CodeOf(err)) })
			}
			return next(runtime.WithMetadata(ctx, "trace", "7"), in)
		}
	}
	rt, err := raylink.Start(ctx, quietly(), raylink.WithClientInterceptor(trace))
	if err != nil {
		fmt.Println(err)
		return
	}
	defer rt.Close() //nolint:errcheck // nothing is left to do with its error
	store, err := storagev1raylink.FindStorage(ctx, rt, runtime.Path("storage-0"))
	if err != nil {
		fmt.Println(err)
		return
	}
	_, err = store.Get(ctx, &storagev1.GetRequest{Key: "nothing"})
	fmt.Println(connect.CodeOf(err))
	// Output:
	// Get not_found
	// not_found
}

// A listener is notified of what happens to the process's nodes, connections and calls.
func ExampleWithEventListener() {
	ctx := context.Background()
	listener := runtime.EventListener{
		NodeStarted: func(e runtime.NodeStartedInfo) { fmt.Println(e.Path, "started") },
		NodeDied:    func(e runtime.NodeDiedInfo) { fmt.Println(e.Path, "died:", e.Reason) },
	}
	rt, err := raylink.Start(ctx, quietly(), raylink.WithEventListener(listener),
		raylink.WithEventListener(runtime.LogEvents(slog.New(slog.DiscardHandler))))
	if err != nil {
		fmt.Println(err)
		return
	}
	node, err := storagev1raylink.CreateStorage(ctx, rt, &storagev1.StorageConfig{})
	if err != nil {
		fmt.Println(err)
		return
	}
	if err := node.Ref().Stop(ctx); err != nil {
		fmt.Println(err)
		return
	}
	if err := rt.Close(); err != nil { // every event was delivered
		fmt.Println(err)
		return
	}
	// Unordered output:
	// storage-0 started
	// ps-0 started
	// ps-0/officer-0 started
	// storage-1 started
	// storage-1 died: stopped
	// storage-0 died: stopped
	// ps-0/officer-0 died: stopped
	// ps-0 died: stopped
}
