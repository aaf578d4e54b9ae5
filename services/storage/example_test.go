package storage_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/raylink/raylink"
	"github.com/raylink/raylink/gen/raylink/storage/v1/storagev1raylink"
	"github.com/raylink/raylink/runtime"
	"github.com/raylink/raylink/services/storage"
)

// open starts a system and returns a client of its storage. Every system has the storage storage-0.
func open(ctx context.Context) (store *storage.Client, closes func(), err error) {
	directory, err := os.MkdirTemp("", "")
	if err != nil {
		return nil, nil, err
	}
	rt, err := raylink.Start(ctx, raylink.WithData(directory))
	if err != nil {
		return nil, nil, err
	}
	closes = func() {
		_ = rt.Close()
		_ = os.RemoveAll(directory)
	}
	node, err := storagev1raylink.FindStorage(ctx, rt, runtime.Path("storage-0"))
	if err != nil {
		closes()
		return nil, nil, err
	}
	return storage.New(node), closes, nil
}

func Example() {
	ctx := context.Background()
	store, closes, err := open(ctx)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer closes()
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

// Update computes a value from the last one, although others write too.
func ExampleUpdate() {
	ctx := context.Background()
	store, closes, err := open(ctx)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer closes()
	for _, score := range []float64{21, 180, 95} {
		best, err := storage.Update(ctx, store, "best", func(old float64) (float64, error) { return max(old, score), nil })
		fmt.Println(best, err)
	}
	// Output:
	// 21 <nil>
	// 180 <nil>
	// 180 <nil>
}

// A batch is all or nothing.
func ExampleClient_Batch() {
	ctx := context.Background()
	store, closes, err := open(ctx)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer closes()
	err = store.Batch(ctx, storage.PutOp("state", "training"), storage.AddOp("runs", 1), storage.DeleteOp("result"))
	fmt.Println(err)
	err = store.Batch(ctx, storage.AddOp("runs", 1), storage.AddOp("state", 1))
	if failed := new(storage.BatchError); errors.As(err, &failed) {
		fmt.Println("operation", failed.Index, "failed:", failed.Key)
	}
	runs, err := storage.Get[int](ctx, store, "runs")
	fmt.Println(runs, err)
	// Output:
	// <nil>
	// operation 1 failed: state
	// 1 <nil>
}

// Conditions make a put or a delete depend on the key's last write: here a lock that only its owner
// releases, and that ends with its time if the owner does not.
func ExampleIfAbsent() {
	ctx := context.Background()
	store, closes, err := open(ctx)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer closes()
	id, err := storage.Put(ctx, store, "lock", "me", storage.IfAbsent(), storage.TTL(time.Minute))
	fmt.Println("locked", err)
	_, err = storage.Put(ctx, store, "lock", "you", storage.IfAbsent(), storage.TTL(time.Minute))
	if taken := new(storage.ConditionError); errors.As(err, &taken) {
		fmt.Println("taken:", taken.ID == id)
	}
	released, err := store.Delete(ctx, "lock", storage.IfID(id))
	fmt.Println("released", released, err)
	// Output:
	// locked <nil>
	// taken: true
	// released true <nil>
}

// A watch since the id of a read misses nothing, however long ago the key was written.
func ExampleClient_Watch() {
	ctx := context.Background()
	store, closes, err := open(ctx)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer closes()
	var asOf uint64
	state, err := storage.GetOr(ctx, store, "state", "none", storage.AsOf(&asOf))
	fmt.Println(state, err)
	for _, next := range []string{"training", "done"} { // by another program
		if _, err := storage.Put(ctx, store, "state", next); err != nil {
			fmt.Println(err)
			return
		}
	}
	for change, err := range store.Watch(ctx, "state", storage.Exact(), storage.Since(asOf)) {
		if lost := new(storage.HistoryLostError); errors.As(err, &lost) {
			fmt.Println("too much has changed: read again")
			return
		}
		if err != nil {
			fmt.Println(err)
			return
		}
		state, err := storage.As[string](change)
		fmt.Println(state, err)
		if state == "done" {
			break
		}
	}
	// Output:
	// none <nil>
	// training <nil>
	// done <nil>
}
