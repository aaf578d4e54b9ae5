package storage_test

import (
	"context"
	"fmt"
	"os"

	"github.com/raylink/raylink"
	"github.com/raylink/raylink/gen/raylink/storage/v1/storagev1raylink"
	"github.com/raylink/raylink/runtime"
	"github.com/raylink/raylink/services/storage"
)

// Every system has the storage storage-0.
func Example() {
	ctx := context.Background()
	directory, err := os.MkdirTemp("", "")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(directory) //nolint:errcheck // a temporary directory
	rt, err := raylink.Start(ctx, raylink.WithData(directory))
	if err != nil {
		fmt.Println(err)
		return
	}
	defer rt.Close() //nolint:errcheck // nothing is left to do with its error
	node, err := storagev1raylink.FindStorage(ctx, rt, runtime.Path("storage-0"))
	if err != nil {
		fmt.Println(err)
		return
	}
	store := storage.New(node)
	if _, err := storage.Put(ctx, store, "name", "cartpole"); err != nil {
		fmt.Println(err)
		return
	}
	name, err := storage.Get[string](ctx, store, "name")
	fmt.Println(name, err)
	steps, err := storage.Add(ctx, store, "steps", 100)
	fmt.Println(steps, err)
	// Output:
	// cartpole <nil>
	// 100 <nil>
}
