package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"time"

	"connectrpc.com/connect/v2"
	"github.com/spf13/cobra"

	replayv1 "github.com/raylink/raylink/gen/raylink/replay/v1"
)

// progressInterval is how often a checkpoint's progress is printed.
const progressInterval = time.Second

func (r *replayApp) checkpointCommand() *cobra.Command {
	return r.finish(&cobra.Command{
		Use:   "checkpoint DIR",
		Short: "Copy a replay to a directory while it is used",
		Long: `checkpoint has the replay's node copy its rows, items, priorities and limiters to a directory of the node's machine, while it is used.
The directory must be empty, or not exist. It is complete and on the disk when the command ends without an error, and else there is none.
A replay with the field restore in its configuration, or its method Restore, gets it back.

Progress is printed to standard error. With -o json, the command prints one object with "directory", "rows", "bytes", "lost" (rows that were
overwritten before they could be copied) and "tables".`,
		Example: "  raylink replay checkpoint /backup/replay-7",
		Args:    between(1, 1, "DIR"),
		ValidArgsFunction: func(*cobra.Command, []string, string) ([]cobra.Completion, cobra.ShellCompDirective) {
			return nil, cobra.ShellCompDirectiveFilterDirs
		},
		RunE: func(cmd *cobra.Command, args []string) error { return r.checkpoint(cmd.Context(), args[0]) },
	})
}

// checkpointInfo is the result of a checkpoint in JSON.
type checkpointInfo struct {
	Directory string                `json:"directory"`
	Rows      uint64                `json:"rows"`
	Bytes     uint64                `json:"bytes"`
	Lost      uint64                `json:"lost"`
	Tables    []checkpointTableInfo `json:"tables,omitempty"`
}

type checkpointTableInfo struct {
	Name    string `json:"name"`
	Items   uint64 `json:"items"`
	LeftOut uint64 `json:"left_out"`
}

func (r *replayApp) checkpoint(ctx context.Context, directory string) error {
	directory, err := filepath.Abs(directory)
	if err != nil {
		return localise(err)
	}
	s, err := r.connect(ctx)
	if err != nil {
		return err
	}
	defer s.close()
	path, err := r.find(ctx, s)
	if err != nil {
		return err
	}
	done, err := r.followCheckpoint(ctx, s, path, directory)
	if err != nil {
		return err
	}
	info := checkpointInfo{Directory: directory, Rows: done.GetRows(), Bytes: done.GetBytes(), Lost: done.GetLost()}
	items := make([]string, 0, len(done.GetTables()))
	for _, t := range done.GetTables() {
		info.Tables = append(info.Tables, checkpointTableInfo{t.GetName(), t.GetItems(), t.GetLeftOut()})
		text := word(t.GetName()) + ": " + plural(t.GetItems(), "item")
		if t.GetLeftOut() > 0 {
			text += fmt.Sprintf(", %d left out because their rows were overwritten", t.GetLeftOut())
		}
		items = append(items, text+"\n")
	}
	if r.output == outputJSON {
		return r.writeJSON(info)
	}
	lost := ""
	if info.Lost > 0 {
		lost = fmt.Sprintf(", %d overwritten before they could be copied", info.Lost)
	}
	return r.write(fmt.Sprintf("%s%s, %s in %s\n%s", plural(info.Rows, "row"), lost, formatSize(info.Bytes), printable(directory), strings.Join(items, "")))
}

// followCheckpoint prints the progress of a checkpoint, and returns its end.
func (r *replayApp) followCheckpoint(ctx context.Context, s *system, path, directory string) (*replayv1.CheckpointResponse, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := s.replay(path).Checkpoint(ctx, &replayv1.CheckpointRequest{Directory: directory})
	if err != nil {
		return nil, err
	}
	defer func() { _ = stream.Close() }()
	var last *replayv1.CheckpointResponse
	printed := time.Now()
	for {
		res, err := stream.Receive()
		switch {
		case errors.Is(err, io.EOF) && last.GetDone():
			return last, nil
		case errors.Is(err, io.EOF):
			return nil, connect.Errorf(connect.CodeDataLoss, "checkpoint %s: the node ended the call after %d of %d rows", path, last.GetRows(), last.GetTotal())
		case err != nil:
			return nil, err
		}
		last = res
		if time.Since(printed) >= progressInterval && !last.GetDone() {
			printed = time.Now()
			_, _ = fmt.Fprintf(r.err, "%d of %s, %s\n", last.GetRows(), plural(last.GetTotal(), "row"), formatSize(last.GetBytes()))
		}
	}
}
