package ps_test

import (
	"context"
	"fmt"
	"os"

	"github.com/raylink/raylink"
	"github.com/raylink/raylink/gen/raylink/ps/v1/psv1raylink"
	"github.com/raylink/raylink/runtime"
	"github.com/raylink/raylink/services/ps"
)

// Every system has the parameter server ps-0: a learner pushes, and others pull.
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
	captain, err := psv1raylink.FindCaptain(ctx, rt, runtime.Path("ps-0"))
	if err != nil {
		fmt.Println(err)
		return
	}
	client, err := ps.Open(ctx, captain)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer client.Close() //nolint:errcheck // nothing is left to do with its error
	if _, err := client.Push(ctx, "policy", []byte("weights")); err != nil {
		fmt.Println(err)
		return
	}
	parameters, err := client.Pull(ctx, "policy")
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Printf("%s\n", parameters.Bytes())
	if err := parameters.Release(); err != nil {
		fmt.Println(err)
		return
	}
	// Output: weights
}
