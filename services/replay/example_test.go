package replay_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"

	"github.com/raylink/raylink"
	"github.com/raylink/raylink/examples/cartpole/gen/cartpole/v1/cartpolev1raylink"
	replayv1 "github.com/raylink/raylink/gen/raylink/replay/v1"
	"github.com/raylink/raylink/gen/raylink/replay/v1/replayv1raylink"
	tensorv1 "github.com/raylink/raylink/gen/raylink/tensor/v1"
	"github.com/raylink/raylink/services/replay"
)

// A writer fills rows of a message in place. Readers sample copies, and read the newest in place.
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
		Columns: cartpolev1raylink.TransitionRow.Columns(), CapacityBytes: 1 << 20,
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	transitions, err := replay.Open(ctx, node, cartpolev1raylink.TransitionRow)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer transitions.Close() //nolint:errcheck // nothing is left to do with its error
	writer, err := transitions.Writer()
	if err != nil {
		fmt.Println(err)
		return
	}
	for step := range 3 {
		if err := writer.Append(ctx, 1, func(rows *cartpolev1raylink.TransitionColumns) {
			copy(rows.Observation, []float32{0.1, 0.2, 0.3, 0.4})
			rows.Action[0], rows.Return[0], rows.Discount[0] = int32(step%2), 1, 0.99
		}); err != nil {
			fmt.Println(err)
			return
		}
	}
	batch, err := transitions.NewBatch(0)
	if err != nil {
		fmt.Println(err)
		return
	}
	if err := transitions.Reader(nil).Sample(ctx, 4, batch); err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(batch.Len(), batch.Columns.Return)
	area, err := transitions.Newest(ctx, 2)
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, span := range area.Spans() {
		fmt.Println(span.Columns.Action, span.Columns.Observation[:4])
	}
	fmt.Println(area.Release())
	// Output:
	// 4 [1 1 1 1]
	// [1 0] [0.1 0.2 0.3 0.4]
	// <nil>
}

// A table has items, which are runs of rows, and chooses those that are sampled.
func ExampleTyped_Sampler() {
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
		Columns: cartpolev1raylink.TransitionRow.Columns(), Capacity: 1000,
		Tables: []*replayv1.TableConfig{replay.Table("per", replay.Prioritized(0.6), replay.MinSize(2))},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	transitions, err := replay.Open(ctx, node, cartpolev1raylink.TransitionRow)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer transitions.Close() //nolint:errcheck // nothing is left to do with its error
	writer, err := transitions.Writer(replay.History(3))
	if err != nil {
		fmt.Println(err)
		return
	}
	for step := range 4 {
		err = writer.Append(ctx, 1, func(rows *cartpolev1raylink.TransitionColumns) { rows.Return[0] = float32(step) })
		if err == nil && step >= 2 {
			_, err = writer.Item(ctx, "per", 3, float64(step-2)) // the last three rows; the first item has priority 0
		}
		if err != nil {
			fmt.Println(err)
			return
		}
	}
	if err := errors.Join(writer.EndEpisode(ctx), writer.Flush(ctx)); err != nil {
		fmt.Println(err)
		return
	}
	sampler, err := transitions.Sampler("per", replay.BatchOf(2), replay.Prefetch(2), replay.Weights(0.4))
	if err != nil {
		fmt.Println(err)
		return
	}
	defer sampler.Close() //nolint:errcheck // nothing is left to do with its error
	batch, err := sampler.Next(ctx)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(batch.Len(), batch.Length, batch.Columns.Return)
	fmt.Println(batch.Info[0].Sequences, batch.Info[0].Probability, batch.Info[0].Weight)
	fmt.Println(sampler.Update(ctx, batch.Keys(), []float64{0.5, 0.7}))
	// Output:
	// 2 3 [1 2 3 1 2 3]
	// [1 2 3] 1 1
	// 0 <nil>
}

// A replay is copied to a directory while it is used, and another one begins with the copy.
func ExampleClient_Checkpoint() {
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
	config := &replayv1.ReplayConfig{
		Columns: cartpolev1raylink.TransitionRow.Columns(), Capacity: 1000,
		Tables: []*replayv1.TableConfig{replay.Table("per", replay.Prioritized(0.6))},
	}
	open := func() (*replay.Typed[cartpolev1raylink.TransitionColumns], error) {
		node, err := replayv1raylink.CreateReplay(ctx, rt, config)
		if err != nil {
			return nil, err
		}
		return replay.Open(ctx, node, cartpolev1raylink.TransitionRow)
	}
	transitions, err := open()
	if err != nil {
		fmt.Println(err)
		return
	}
	defer transitions.Close() //nolint:errcheck // nothing is left to do with its error
	writer, err := transitions.Writer(replay.History(2))
	if err != nil {
		fmt.Println(err)
		return
	}
	err = writer.Append(ctx, 2, func(rows *cartpolev1raylink.TransitionColumns) { copy(rows.Return, []float32{7, 8}) })
	if err == nil {
		_, err = writer.Item(ctx, "per", 2, 0.5)
	}
	if err := errors.Join(err, writer.Flush(ctx)); err != nil {
		fmt.Println(err)
		return
	}
	step := filepath.Join(directory, "step-1000")
	done, err := transitions.Client().Checkpoint(ctx, step, nil)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(done.GetRows(), "rows,", done.GetTables()[0].GetItems(), "item,", done.GetLost(), "lost")

	config.Restore = step // or Client.Restore, before rows are written
	restored, err := open()
	if err != nil {
		fmt.Println(err)
		return
	}
	defer restored.Close() //nolint:errcheck // nothing is left to do with its error
	sampler, err := restored.Sampler("per", replay.BatchOf(1))
	if err != nil {
		fmt.Println(err)
		return
	}
	defer sampler.Close() //nolint:errcheck // nothing is left to do with its error
	batch, err := sampler.Next(ctx)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(batch.Columns.Return, batch.Info[0].Priority)
	// Output:
	// 2 rows, 1 item, 0 lost
	// [7 8] 0.5
}

// Sequences for a recurrent network: 4 rows each, of which the first 2 only warm up its state, and
// which overlap by them. The last sequence of an episode has the rows that are left; it is padded
// to the same length.
func ExampleLength() {
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
		Columns: cartpolev1raylink.TransitionRow.Columns(), Capacity: 1000,
		Tables: []*replayv1.TableConfig{replay.Table("sequences", replay.FIFO(), replay.Queue(64))},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	transitions, err := replay.Open(ctx, node, cartpolev1raylink.TransitionRow)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer transitions.Close() //nolint:errcheck // nothing is left to do with its error
	const length, burnIn = 4, 2
	writer, err := transitions.Writer(replay.History(length))
	if err != nil {
		fmt.Println(err)
		return
	}
	const steps = 7 // of an episode
	since := burnIn // rows since the last sequence, and those that overlap with it
	for step := range steps {
		if err := writer.Append(ctx, 1, func(rows *cartpolev1raylink.TransitionColumns) {
			rows.Return[0] = float32(step + 1)
		}); err != nil {
			fmt.Println(err)
			return
		}
		since++
		if n := min(length, writer.EpisodeRows()); since == length && n == length || step == steps-1 {
			if step == steps-1 {
				n = min(n, since)
			}
			if _, err := writer.Item(ctx, "sequences", n, 1); err != nil {
				fmt.Println(err)
				return
			}
			since = burnIn
		} else if since == length {
			since-- // the first sequence is not complete yet
		}
	}
	if err := errors.Join(writer.EndEpisode(ctx), writer.Flush(ctx)); err != nil {
		fmt.Println(err)
		return
	}
	sampler, err := transitions.Sampler("sequences", replay.BatchOf(3), replay.Length(length))
	if err != nil {
		fmt.Println(err)
		return
	}
	defer sampler.Close() //nolint:errcheck // nothing is left to do with its error
	batch, err := sampler.Next(ctx)
	if err != nil {
		fmt.Println(err)
		return
	}
	for i := range batch.Len() {
		from, to := i*batch.Length, (i+1)*batch.Length
		fmt.Printf("%v %v\n", batch.Columns.Return[from:to], batch.Mask[from:to])
	}
	// Output:
	// [1 2 3 4] [1 1 1 1]
	// [3 4 5 6] [1 1 1 1]
	// [5 6 7 0] [1 1 1 0]
}

// Where the columns are known only when the program runs, rows are a batch of columns by name.
func ExampleOpenClient() {
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
