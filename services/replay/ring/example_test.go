package ring_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/raylink/raylink/services/replay/ring"
)

// One process creates a ring, and others open it by its path and id. Here both are this process.
func Example() {
	directory, err := os.MkdirTemp("", "ring")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer func() { _ = os.RemoveAll(directory) }()
	layout := ring.Layout{Capacity: 1000, Columns: []ring.Column{
		{Name: "observation", DType: ring.Float32, Shape: []uint64{2}},
		{Name: "action", DType: ring.Int64}, // a scalar
	}}
	created, err := ring.Create(filepath.Join(directory, "replay"), layout)
	if err != nil {
		fmt.Println(err)
		return
	}
	opened, err := ring.Open(created.Path(), created.ID())
	if err != nil {
		fmt.Println(err)
		return
	}
	if err := appendRows(opened); err != nil {
		fmt.Println(err)
		return
	}

	reader, err := created.Reader()
	if err != nil {
		fmt.Println(err)
		return
	}
	// An area is read in place, without a copy. Writers skip its rows until it is released.
	area, err := reader.Hold(context.Background(), 3)
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, span := range area.Spans() {
		observations, err := ring.Values[float32](span, "observation")
		if err != nil {
			fmt.Println(err)
			return
		}
		actions, err := ring.Values[int64](span, "action")
		fmt.Println(observations, actions, err)
	}
	fmt.Println(area.Release(), opened.Close(), created.Remove())
	// Output:
	// [0 0.5 1 1.5 2 2.5] [10 11 12] <nil>
	// <nil> <nil> <nil>
}

// appendRows writes three rows.
func appendRows(r *ring.Ring) error {
	batch, err := ring.NewBatch(r.Layout(), 3)
	if err != nil {
		return err
	}
	observations, err := ring.Values[float32](batch, "observation")
	if err != nil {
		return err
	}
	for i := range observations {
		observations[i] = float32(i) / 2
	}
	actions, err := ring.Values[int64](batch, "action")
	if err != nil {
		return err
	}
	copy(actions, []int64{10, 11, 12})
	writer, err := r.Writer()
	if err != nil {
		return err
	}
	_, err = writer.Append(context.Background(), batch)
	return err
}
