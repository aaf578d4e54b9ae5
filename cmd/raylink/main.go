// Raylink is the command line for people: it runs a Brain, shows what a system consists of, and calls its nodes.
//
//	raylink brain                                   run a Brain until it is interrupted
//	raylink tree [NODE]                             show the nodes
//	raylink call NODE Method '{"by": 2}'            call one, by path, alias or nid
//
// A command finds Brain by --brain, RAYLINK_BRAIN, or the address where `raylink brain` listens by default. It needs no schema: it learns
// that of a node from the node. docs/cli.md is the reference.
//
// What stands where: command.go has the flags that all commands share; brain.go, tree.go and call.go have a command each; system.go is the way
// to Brain and through its gateway to the nodes; schema.go learns schemas; failure.go says how errors are told.
package main

import (
	"context"
	"os"

	"github.com/raylink/raylink/internal/assemble"
)

func main() { os.Exit(run()) }

func run() int {
	ctx, stop := assemble.SignalContext(context.Background())
	defer stop()
	a := &app{in: os.Stdin, out: os.Stdout, err: os.Stderr}
	return a.run(ctx, os.Args[1:])
}
