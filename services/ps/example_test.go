package ps_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/raylink/raylink"
	"github.com/raylink/raylink/gen/raylink/ps/v1/psv1raylink"
	"github.com/raylink/raylink/runtime"
	"github.com/raylink/raylink/services/ps"
	"github.com/raylink/raylink/services/ps/safetensors"
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

// A model is pushed as named tensors, saved, and loaded into another system. Other programs can
// read the file, which has the safetensors format.
func ExampleClient_PushTensors() {
	ctx := context.Background()
	directory, err := os.MkdirTemp("", "")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(directory) //nolint:errcheck // a temporary directory
	with := func(do func(client *ps.Client) error) error {
		rt, err := raylink.Start(ctx, raylink.WithData(filepath.Join(directory, "data")))
		if err != nil {
			return err
		}
		defer rt.Close() //nolint:errcheck // nothing is left to do with its error
		captain, err := psv1raylink.FindCaptain(ctx, rt, runtime.Path("ps-0"))
		if err != nil {
			return err
		}
		client, err := ps.Open(ctx, captain)
		if err != nil {
			return err
		}
		return errors.Join(do(client), client.Close())
	}
	saved := filepath.Join(directory, "saved")
	err = with(func(client *ps.Client) error {
		bias := safetensors.Tensor{Name: "layer0.bias", DType: "U8", Shape: []int{3}, Data: []byte{1, 2, 3}}
		if _, err := client.PushTensors(ctx, "policy/best", []safetensors.Tensor{bias}, ps.Info("step", "100")); err != nil {
			return err
		}
		return client.Save(ctx, saved, "policy/best")
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	err = with(func(client *ps.Client) error {
		version, err := client.Load(ctx, saved, "policy/best")
		if err != nil {
			return err
		}
		fmt.Println(version.GetTag(), version.GetId(), version.GetInfo()["step"])
		parameters, err := client.Pull(ctx, "policy/best")
		if err != nil {
			return err
		}
		bias, err := parameters.Tensor("layer0.bias")
		fmt.Println(bias.DType, bias.Shape, len(bias.Data))
		return errors.Join(err, parameters.Release())
	})
	if err != nil {
		fmt.Println(err)
	}
	// Output:
	// policy/best 1 100
	// U8 [3] 3
}
