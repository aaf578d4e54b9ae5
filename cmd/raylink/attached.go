package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/raylink/raylink/internal/engine"
	"github.com/raylink/raylink/runtime/launch"
)

// attachedFlag adds the flag of processes that end with the one that has started them.
func (a *app) attachedFlag(cmd *cobra.Command, attached *bool) {
	cmd.Flags().BoolVar(attached, "attached", false,
		"for programs that start this one: standard input's first line is the token or empty, a line `stop` asks to stop gracefully, and its end means at once")
}

// attach attaches this process to the one that holds its standard input, of which the first line is
// the token. The context ends when that asks to stop, and not by a signal: engines end a run by
// signals to all of its processes, and Brain is needed until the program has ended. A process that
// was launched for a node ends with its launcher instead.
func (a *app) attach(ctx context.Context) (context.Context, func(), error) {
	ctx, stop := context.WithCancel(ctx)
	if launch.Launched() {
		return ctx, stop, nil
	}
	// Slurm sends a signal to all processes of a step. Their order is the other process's to keep.
	// Signals that are handled are not ignored by what this process starts, as signals without a
	// handler would be.
	signal.Ignore(os.Interrupt, syscall.SIGTERM) // forgets the handlers that there are
	signal.Notify(make(chan os.Signal, 1), os.Interrupt, syscall.SIGTERM)
	token, err := engine.Attach(a.in, stop, func() { os.Exit(exitFailed) }) // nothing may be left of a run whose head was killed
	if err != nil {
		stop()
		return nil, nil, usagef("%v", err)
	}
	if token != "" {
		if a.token+a.tokenFile != "" {
			stop()
			return nil, nil, errTwoTokens()
		}
		a.token = token
	}
	return ctx, stop, nil
}
