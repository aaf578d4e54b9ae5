package replay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"

	replayv1 "github.com/raylink/raylink/gen/raylink/replay/v1"
	"github.com/raylink/raylink/services/internal/mapfile"
	"github.com/raylink/raylink/services/replay/internal/checkpoint"
	"github.com/raylink/raylink/services/replay/internal/table"
	"github.com/raylink/raylink/services/replay/ring"
)

// Errors of checkpoints. They are returned wrapped: compare with [errors.Is].
var (
	// ErrCheckpoint means that a directory is not a complete checkpoint.
	ErrCheckpoint = checkpoint.ErrDamaged
	// ErrNotEmpty means that the replay that should be restored has had rows or items.
	ErrNotEmpty = ring.ErrNotEmpty
	// ErrDirectory means that a checkpoint can't be written to a directory, because it is not
	// empty, or is none.
	ErrDirectory = checkpoint.ErrDirectory
	// ErrNoSpace means that a file system has too little space: for a checkpoint, or for the items
	// of a replay with a file that should be restored. The error says how much is needed and there.
	ErrNoSpace = mapfile.ErrNoSpace
)

// Checkpoint makes the replay's node copy its rows and tables to a new directory, while they are
// used. The directory is on the node's machine; a relative one is made absolute here. It must not
// exist, or be empty. When Checkpoint returns without an error, the copy is complete and on the
// disk; otherwise there is none. The response says which rows were overwritten before they could be
// copied, and which items are not in the copy because of that.
//
// progress, which may be nil, is called from time to time, in this goroutine. The end of the
// context ends the copy.
func (c *Client) Checkpoint(ctx context.Context, directory string, progress func(*replayv1.CheckpointResponse)) (*replayv1.CheckpointResponse, error) {
	last, err := c.checkpoint(ctx, directory, progress)
	if err != nil {
		return nil, fmt.Errorf("checkpoint the replay: %w", err)
	}
	return last, nil
}

func (c *Client) checkpoint(ctx context.Context, directory string, progress func(*replayv1.CheckpointResponse)) (_ *replayv1.CheckpointResponse, err error) {
	if err := c.opened(); err != nil {
		return nil, err
	}
	absolute, err := absoluteDirectory(directory)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := c.Handle().Checkpoint(ctx, &replayv1.CheckpointRequest{Directory: absolute})
	if err != nil {
		return nil, ringError(err)
	}
	defer func() { err = errors.Join(err, stream.Close()) }()
	var last *replayv1.CheckpointResponse
	for {
		res, err := stream.Receive()
		switch {
		case errors.Is(err, io.EOF) && last.GetDone():
			return last, nil
		case errors.Is(err, io.EOF):
			return nil, fmt.Errorf("the node ended the call after %d of %d rows", last.GetRows(), last.GetTotal())
		case err != nil:
			return nil, ringError(err)
		}
		if last = res; progress != nil && !res.GetDone() {
			progress(res)
		}
	}
}

// Restore fills a replay that has had no rows and items yet from a checkpoint, or changes nothing.
// The directory is on the node's machine; a relative one is made absolute here. The replay's
// configuration counts: the response and the node's log have the differences. Writers wait
// meanwhile. [replayv1.ReplayConfig] can do the same before the replay is used.
//
// If the checkpoint is damaged or not complete, the error is [ErrCheckpoint] and says what is
// wrong. Other columns are [ring.ErrLayout], a replay that is not empty is [ErrNotEmpty].
func (c *Client) Restore(ctx context.Context, directory string) (*replayv1.Restored, error) {
	if err := c.opened(); err != nil {
		return nil, fmt.Errorf("restore the replay: %w", err)
	}
	absolute, err := absoluteDirectory(directory)
	if err != nil {
		return nil, fmt.Errorf("restore the replay: %w", err)
	}
	res, err := c.Handle().Restore(ctx, &replayv1.RestoreRequest{Directory: absolute})
	if err != nil {
		return nil, fmt.Errorf("restore the replay: %w", ringError(err))
	}
	return res.GetRestored(), nil
}

func absoluteDirectory(directory string) (string, error) {
	if directory == "" {
		return "", fmt.Errorf("%w: no directory is named", ErrArgument)
	}
	absolute, err := filepath.Abs(directory)
	if err != nil {
		return "", fmt.Errorf("make the directory %q absolute: %w", directory, err)
	}
	return absolute, nil
}

// checkpointReason returns the reason of an error of checkpoints, or unspecified.
func checkpointReason(err error) replayv1.Reason {
	switch {
	case errors.Is(err, ErrCheckpoint):
		return replayv1.Reason_REASON_CHECKPOINT
	case errors.Is(err, ErrNotEmpty), errors.Is(err, table.ErrNotEmpty):
		return replayv1.Reason_REASON_NOT_EMPTY
	case errors.Is(err, ErrDirectory):
		return replayv1.Reason_REASON_DIRECTORY
	case errors.Is(err, ErrNoSpace):
		return replayv1.Reason_REASON_SPACE
	default:
		return replayv1.Reason_REASON_UNSPECIFIED
	}
}
