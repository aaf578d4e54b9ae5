package storagetest

import (
	"context"
	"fmt"
	"os"

	"github.com/raylink/raylink"
	storagev1 "github.com/raylink/raylink/gen/raylink/storage/v1"
	"github.com/raylink/raylink/gen/raylink/storage/v1/storagev1raylink"
	"github.com/raylink/raylink/internal/proctest"
	"github.com/raylink/raylink/services/storage"
)

// durabilities are what an order's Durability means.
var durabilities = map[string]storagev1.Durability{
	"memory": storagev1.Durability_DURABILITY_MEMORY,
	"async":  storagev1.Durability_DURABILITY_ASYNC,
	"sync":   storagev1.Durability_DURABILITY_SYNC,
}

// serveBrain is the main function of Brain's process, and of those of its own nodes.
func serveBrain() error {
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	return raylink.ServeBrain(ctx, raylink.BrainOptions{
		Listen:  os.Getenv(listen),
		Storage: &storagev1.StorageConfig{Durability: durabilities[os.Getenv(durability)]},
		Serving: func(string, string, string) {
			// The process was not launched as a node's, so its input is the test's.
			go func() {
				proctest.UntilEnd(os.Stdin)
				stop()
			}()
			fmt.Println("serving")
		},
	})
}

// watchByClient watches a prefix from the beginning by the client's iterator, which resumes by
// itself.
func (w *worker) watchByClient(ctx context.Context, h *storagev1raylink.Storage, who, prefix string) {
	w.tell(answer{Event: sentEvent, Who: who, Sent: &sent{Prefix: prefix}})
	for c, err := range storage.New(h).Watch(ctx, prefix, storage.Since(0)) {
		if err != nil {
			if ctx.Err() == nil {
				w.tell(fail(answer{Event: faultEvent, Who: who}, err))
			}
			return
		}
		w.saw(c.GetId())
		w.tell(answer{Event: sentEvent, Who: who, Sent: &sent{Prefix: prefix, Changes: []change{changeOf(c)}}})
	}
}
