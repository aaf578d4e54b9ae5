// Package raylink makes a process part of a system of nodes. It is the package that most programs
// start from.
//
// A program describes its nodes in .proto files, generates code from them, and calls [Init] with
// the node types that it can host:
//
//	rt, err := raylink.Init(ctx, counterv1raylink.CounterType(newCounter))
//	if err != nil { ... }
//	defer rt.Close()
//	counter, err := counterv1raylink.CreateCounter(ctx, rt, &counterv1.CounterConfig{Start: 1})
//	sum, err := counter.Add(ctx, &counterv1.AddRequest{By: 2})
//
// A node gets a process of its own, which runs the same program: there, Init serves the node and
// never returns. Code before Init therefore runs in every process, and code after it only in the
// driver.
//
// Without the address of a Brain, Init embeds one, which ends with the driver; other processes can
// join it by RAYLINK_BRAIN meanwhile. A binary that never embeds a Brain can use package join
// instead: it has the same functions, and is much smaller.
//
// [Options] documents every option with its environment variable and its default.
package raylink

import (
	"context"

	"github.com/raylink/raylink/brain"
	nodev1 "github.com/raylink/raylink/gen/raylink/node/v1"
	"github.com/raylink/raylink/internal/assemble"
	"github.com/raylink/raylink/runtime"
	"github.com/raylink/raylink/runtime/rundir"
	_ "github.com/raylink/raylink/services/storage/durable" // storages of this program keep their data
)

type system = assemble.Runtime

// Runtime is this process's part in a system. The generated Create and Find functions take it as
// the parent of new nodes, and as the place to find nodes from. Its methods may be called
// concurrently.
type Runtime struct{ *system }

// Shutdown stops the runtime gracefully: its nodes, children before parents, each after its running
// calls; then its connections; then an embedded Brain. When ctx ends, what is left is ended
// unconditionally. Shutdown returns once no process, goroutine, socket or mapped file of the
// runtime is left. If the runtime is being shut down already, it waits for that, or until ctx ends.
func (rt *Runtime) Shutdown(ctx context.Context) error { return rt.system.Shutdown(ctx) }

// Close is Shutdown, bounded by twice [Options].Drain.
func (rt *Runtime) Close() error { return rt.system.Close() }

// Done returns a channel that is closed once the runtime has ended: after Shutdown or Close, or
// after a signal that ended it.
func (rt *Runtime) Done() <-chan struct{} { return rt.system.Done() }

// Err returns nil while the runtime runs. Once Done is closed it returns an error that says why it
// ended, which wraps [runtime.ErrClosed].
func (rt *Runtime) Err() error { return rt.system.Err() }

// Address returns the address, HOST:PORT, at which the process serves tunnels and HTTP. If the
// process embeds a Brain, other processes join the system there.
func (rt *Runtime) Address() string { return rt.system.Address() }

// TokenFile returns the path of the file with the system's token, for programs of this user in
// other languages. It is "" if this process has not made the token.
func (rt *Runtime) TokenFile() string { return rt.system.TokenFile() }

// RunDirectory returns the directory of this run, which holds its logs, models, variables and
// mapped files.
func (rt *Runtime) RunDirectory() *rundir.Run { return rt.system.RunDirectory() }

// Children returns the records of the nodes directly below Brain, in the order of their creation.
func (rt *Runtime) Children(ctx context.Context) ([]*nodev1.NodeRecord, error) {
	return rt.system.Children(ctx)
}

// Option sets a field of [Options]. A node type, which generated code makes, is an Option too.
type Option = runtime.Option

// Options configure a runtime. An option takes precedence over the environment, and the environment
// over the default.
type Options = runtime.Options

// Init joins the Brain that an option or RAYLINK_BRAIN names, or embeds one. In a process that was
// launched to host a node, it serves the node and never returns.
//
// Init may be called once per process; a second call returns an error. SIGINT and SIGTERM shut the
// runtime down and then end the process; a second signal ends it at once. The caller must Close the
// runtime.
func Init(ctx context.Context, opts ...Option) (*Runtime, error) {
	return newRuntime(assemble.Init(ctx, embedded(), opts...))
}

// Start is for tests and for embedding RayLink: it may be called any number of times, and leaves
// signals alone. Nodes are created in this process unless an option of their creation says
// otherwise. Unlike Init it ignores RAYLINK_BRAIN, unless WithBrainFromEnvironment is given: a test
// must not create its nodes in a live system. The caller must Close the runtime.
func Start(ctx context.Context, opts ...Option) (*Runtime, error) {
	return newRuntime(assemble.Start(ctx, embedded(), opts...))
}

func newRuntime(s *system, err error) (*Runtime, error) {
	if err != nil {
		return nil, err
	}
	return &Runtime{s}, nil
}

// embedded opens a Brain in this process. It ends with its driver, and its nodes with it: there is
// nothing to keep, so its store is in memory.
func embedded() *assemble.Embed {
	return &assemble.Embed{
		Open: func(options runtime.Options, _ string) (assemble.Brain, error) {
			return openBrain(brain.Options{}, options)
		},
		StartSystemNodes: assemble.Configuration{}.StartInProcess,
	}
}
