// Raylink is the command line: it runs a Brain, lists the nodes of a system, and calls them.
//
//	raylink brain                           run a Brain until it is interrupted
//	raylink agent                           make this machine part of a system
//	raylink run -- PROGRAM                  run a program over machines of an engine; runs, attach, stop
//	raylink machines                        show the machines, and what is used of them
//	raylink tree [NODE]                     show the nodes
//	raylink methods NODE                    list a node's methods
//	raylink call NODE Method '{"by": 2}'    call one, by path, alias or nid
//	raylink storage get KEY                 print a value of a storage; storage put, incr, list, watch, save, load
//	raylink ps tags                         list a parameter server's parameters; ps pull, push, save, load
//	raylink replay stats                    show a replay's rows and tables; replay list, items, checkpoint, limit
//	raylink token                           print the system's token; token make, list, revoke
//	raylink ca                              print the certificate of the system's CA
//	raylink version                         print the versions of program and protocols
//	raylink completion SHELL                print a script that completes all of this
//
// A command finds Brain by --brain, RAYLINK_BRAIN, or the files that a running Brain of the same
// user publishes. It needs no schema files: it fetches a node's schema from its host by gRPC
// reflection. docs/cli.md is the reference.
//
// Start with command.go, which has the root command and the shared flags. Each command has a file
// of its name; discover.go finds Brain, system.go connects to it and through its gateway to the
// nodes, schema.go fetches schemas, complete.go has the candidates for completion, and failure.go
// the errors and exit codes.
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
