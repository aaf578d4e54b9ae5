package main

import (
	"context"
	"net"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/raylink/raylink"
	"github.com/raylink/raylink/runtime/rundir"
)

// address returns Brain's address: --brain, else RAYLINK_BRAIN, else that of the only Brain that
// this user runs on this machine, else the default. It is an error if this user runs several.
//
// Brains publish their address with the token that they make, so an open Brain, and one whose token
// was given, is found only at the default address.
func (a *app) address(ctx context.Context) (string, error) {
	for _, address := range []string{a.brain, os.Getenv("RAYLINK_BRAIN")} {
		if address != "" {
			return strings.TrimPrefix(address, "http://"), nil
		}
	}
	switch running := runningBrains(ctx); len(running) {
	case 0:
		return raylink.DefaultBrainAddress, nil
	case 1:
		return running[0], nil
	default:
		return "", usagef("you run %d Brains on this machine, at %s: choose one by --brain or RAYLINK_BRAIN",
			len(running), strings.Join(running, ", "))
	}
}

// runningBrains returns the addresses of this user's Brains on this machine that accept
// connections. A Brain that was killed leaves its address behind until the next run sweeps it.
func runningBrains(ctx context.Context) []string {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	var running []string
	for _, address := range rundir.PublishedBrains() {
		nc, err := new(net.Dialer).DialContext(ctx, "tcp", address)
		if err != nil {
			continue
		}
		_ = nc.Close() // nothing was sent
		running = append(running, address)
	}
	return running
}

func completeBrain(cmd *cobra.Command, _ []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return runningBrains(cmd.Context()), cobra.ShellCompDirectiveNoFileComp
}
