package runtime_test

import (
	"context"
	"fmt"

	storagev1 "github.com/raylink/raylink/gen/raylink/storage/v1"
	"github.com/raylink/raylink/gen/raylink/storage/v1/storagev1raylink"
	"github.com/raylink/raylink/runtime"
)

// ledger is a fake of the storage that commits its writes in groups of two. (A real one commits
// what has arrived while it committed the last group.)
type ledger struct {
	storagev1raylink.UnimplementedStorageNode

	last    uint64
	pending *group
}

// group is writes that are committed at once.
type group struct {
	keys []string
	hold runtime.Hold
}

func (g *group) commit() {
	fmt.Println("commit", g.keys)
	g.hold.Release(nil)
}

func (l *ledger) Incr(ctx context.Context, req *storagev1.IncrRequest) (*storagev1.IncrResponse, error) {
	if l.pending == nil {
		l.pending = &group{}
	}
	g := l.pending
	g.keys = append(g.keys, req.GetKey())
	runtime.NodeFrom(ctx).HoldAnswer(ctx, &g.hold)
	if len(g.keys) == 2 {
		l.pending = nil
		go g.commit()
	}
	l.last++
	return &storagev1.IncrResponse{Id: l.last}, nil
}

// Both calls are answered when the group of their writes is committed. Meanwhile neither has the
// node's turn, nor a goroutine.
func ExampleNode_HoldAnswer() {
	ctx := context.Background()
	l := storagev1raylink.NewLocalStorage(&ledger{})
	a := l.IncrAsync(ctx, &storagev1.IncrRequest{Key: "a"})
	b := l.IncrAsync(ctx, &storagev1.IncrRequest{Key: "b"})
	res, err := a.Get(ctx)
	fmt.Println(res.GetId(), err)
	res, err = b.Get(ctx)
	fmt.Println(res.GetId(), err)
	// Output:
	// commit [a b]
	// 1 <nil>
	// 2 <nil>
}
