package join_test

import (
	"context"
	"fmt"
	"os"

	"github.com/raylink/raylink"
	"github.com/raylink/raylink/gen/raylink/storage/v1/storagev1raylink"
	"github.com/raylink/raylink/join"
	"github.com/raylink/raylink/runtime"
)

// A second part of a system finds the nodes of the first.
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
	other, err := join.Start(ctx, runtime.WithBrain(rt.Address()), runtime.WithData(directory))
	if err != nil {
		fmt.Println(err)
		return
	}
	defer other.Close() //nolint:errcheck // nothing is left to do with its error
	store, err := storagev1raylink.FindStorage(ctx, other, runtime.Path("storage-0"))
	fmt.Println(store.Ref(), err)
	// Output: storage-0 <nil>
}
