package brain

import (
	"context"
	"errors"
	"io"

	"github.com/raylink/raylink/brain/internal/tree"
	"github.com/raylink/raylink/brain/internal/watch"
	brainv1 "github.com/raylink/raylink/gen/raylink/brain/v1"
	"github.com/raylink/raylink/gen/raylink/brain/v1/brainv1connect"
)

// Watch follows records. It continues after the caller has closed its side of the stream: what was
// requested remains in effect.
func (s *service) Watch(ctx context.Context, stream brainv1connect.BrainServiceWatchServerStream) error {
	b := s.brain
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	watcher := b.hub.NewWatcher()
	defer watcher.Close()

	// The headers are sent at once: a caller without anything to follow yet learns that Watch
	// works.
	if err := stream.SendHeaders(); err != nil {
		return streamEnd(err)
	}
	messages := receiving(ctx, stream.Receive)
	go func() {
		for {
			select {
			case in := <-messages:
				if errors.Is(in.err, io.EOF) {
					return
				}
				if in.err == nil {
					in.err = b.apply(watcher, in.msg)
				} else {
					in.err = streamEnd(in.err)
				}
				if in.err != nil {
					cancel(in.err)
					return
				}
			case <-ctx.Done():
				return
			}
		}
	}()
	for {
		records, synced, err := watcher.Next(ctx)
		if err != nil {
			if cause := context.Cause(ctx); cause != nil {
				return cause
			}
			return err
		}
		if err := stream.Send(&brainv1.WatchResponse{Nodes: records, Synced: synced}); err != nil {
			return streamEnd(err)
		}
	}
}

func (b *Brain) apply(watcher *watch.Watcher, req *brainv1.WatchRequest) error {
	if err := tree.CheckText(req); err != nil {
		return err
	}
	if req.GetAll() {
		if err := b.followAll(watcher); err != nil {
			return err
		}
	}
	watcher.Remove(req.GetRemove())
	return b.follow(watcher, req.GetAdd())
}
