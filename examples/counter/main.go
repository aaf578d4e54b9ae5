// Counter is RayLink's smallest program: one node, called in every way.
//
// Read the schema first (proto/counter/v1/counter.proto), then counter.go, which implements it, and
// tour.go, which calls it. `make generate` generates the code in gen.
//
//	counter          calls a node in every way
//	counter serve    keeps one running for other programs, and prints its address
package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/raylink/raylink"
	"github.com/raylink/raylink/examples/counter/gen/counter/v1/counterv1raylink"
)

func main() {
	if err := run(context.Background(), os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "counter:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) (err error) {
	// A node's process runs this program too: there, Init serves the node and never returns.
	rt, err := raylink.Init(ctx, counterv1raylink.CounterType(newCounter))
	if err != nil {
		return err
	}
	// Close ends the nodes and their processes.
	defer func() { err = errors.Join(err, rt.Close()) }()

	switch {
	case len(args) == 0:
		return tour(ctx, rt)
	case len(args) == 1 && args[0] == "serve":
		return serve(ctx, rt, os.Stdout)
	}
	return fmt.Errorf("unknown arguments %q: say nothing, or `serve`", args)
}
