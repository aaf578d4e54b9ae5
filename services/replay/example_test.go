package replay_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"

	"github.com/raylink/raylink"
	replayv1 "github.com/raylink/raylink/gen/raylink/replay/v1"
	"github.com/raylink/raylink/gen/raylink/replay/v1/replayv1raylink"
	tensorv1 "github.com/raylink/raylink/gen/raylink/tensor/v1"
	"github.com/raylink/raylink/services/replay"
)

// A writer appends rows of columns, and a reader samples them.
func Example() {
	ctx := context.Background()
	directory, err := os.MkdirTemp("", "")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(directory) //nolint:errcheck // a temporary directory
	rt, err := raylink.Start(ctx, raylink.WithData(directory), replay.Type())
	if err != nil {
		fmt.Println(err)
		return
	}
	defer rt.Close() //nolint:errcheck // nothing is left to do with its error
	node, err := replayv1raylink.CreateReplay(ctx, rt, &replayv1.ReplayConfig{
		Capacity: 100, Columns: []*tensorv1.Column{replay.Column[float32]("reward")},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	client, err := replay.OpenClient(ctx, node)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer client.Close() //nolint:errcheck // nothing is left to do with its error
	batch, err := client.NewBatch(4)
	if err != nil {
		fmt.Println(err)
		return
	}
	rewards, err := replay.Values[float32](batch, "reward")
	if err != nil {
		fmt.Println(err)
		return
	}
	for i := range rewards {
		rewards[i] = 0.5
	}
	if _, err := client.Writer().Append(ctx, batch); err != nil {
		fmt.Println(err)
		return
	}
	sample, err := client.NewBatch(2)
	if err != nil {
		fmt.Println(err)
		return
	}
	if err := client.Reader(rand.New(rand.NewPCG(1, 2))).Sample(ctx, 2, sample); err != nil {
		fmt.Println(err)
		return
	}
	sampled, err := replay.Values[float32](sample, "reward")
	fmt.Println(sampled, err)
	// Output: [0.5 0.5] <nil>
}
