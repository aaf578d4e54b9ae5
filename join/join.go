// Package join makes a process part of a running system, to host nodes or to call them. It never
// embeds a Brain, so that a binary that uses it links neither Brain nor its store. Everything else
// is as in package raylink, whose documentation applies.
package join

import (
	"context"

	nodev1 "github.com/raylink/raylink/gen/raylink/node/v1"
	"github.com/raylink/raylink/internal/assemble"
	"github.com/raylink/raylink/runtime"
	"github.com/raylink/raylink/runtime/rundir"
)

type system = assemble.Runtime

// Runtime is this process's part in a system. The generated Create and Find functions take it as
// the parent of new nodes, and as the place to find nodes from. Its methods may be called
// concurrently.
type Runtime struct{ *system }

// Shutdown stops the runtime gracefully: its nodes, children before parents, each after its running
// calls; then its connections. When ctx ends, what is left is ended unconditionally. Shutdown
// returns once no process, goroutine, socket or mapped file of the runtime is left. If the runtime
// is being shut down already, it waits for that, or until ctx ends.
func (rt *Runtime) Shutdown(ctx context.Context) error { return rt.system.Shutdown(ctx) }

// Close is Shutdown, bounded by twice [runtime.Options].Drain.
func (rt *Runtime) Close() error { return rt.system.Close() }

// Done returns a channel that is closed once the runtime has ended: after Shutdown or Close, or
// after a signal that ended it.
func (rt *Runtime) Done() <-chan struct{} { return rt.system.Done() }

// Err returns nil while the runtime runs. Once Done is closed it returns an error that says why it
// ended, which wraps [runtime.ErrClosed].
func (rt *Runtime) Err() error { return rt.system.Err() }

// Address returns the address, HOST:PORT, at which the process serves tunnels and HTTP.
func (rt *Runtime) Address() string { return rt.system.Address() }

// RunDirectory returns the directory of this run, which holds its logs, models, variables and
// mapped files.
func (rt *Runtime) RunDirectory() *rundir.Run { return rt.system.RunDirectory() }

// Children returns the records of the nodes directly below Brain, in the order of their creation.
func (rt *Runtime) Children(ctx context.Context) ([]*nodev1.NodeRecord, error) {
	return rt.system.Children(ctx)
}

// Option sets a field of [runtime.Options]. A node type, which generated code makes, is an Option
// too.
type Option = runtime.Option

// Init joins the Brain that an option or RAYLINK_BRAIN names. In a process that was launched to
// host a node, it serves the node and never returns. Init may be called once per process; a second
// call returns an error. The caller must Close the runtime.
func Init(ctx context.Context, opts ...Option) (*Runtime, error) {
	return newRuntime(assemble.Init(ctx, nil, opts...))
}

// Start is for tests and for embedding RayLink: it may be called any number of times, and leaves
// signals alone. Nodes are created in this process unless an option of their creation says
// otherwise. The caller must Close the runtime.
func Start(ctx context.Context, opts ...Option) (*Runtime, error) {
	return newRuntime(assemble.Start(ctx, nil, opts...))
}

// Agent makes this machine part of a system: nodes that other processes create run here as well, as
// far as Brain places them here. It serves a node of its own, `machine-0`, …, and returns after ctx
// has ended or that node was stopped, when the nodes on the machine have been stopped.
// [runtime.WithMachine] describes the machine where that should not be found out.
//
// Agent waits for a Brain that is not there yet. If Brain declares the machine dead because it
// could not be reached, all nodes here end, and Agent joins again. If the process is killed, the
// processes that it has launched end.
func Agent(ctx context.Context, opts ...Option) error { return assemble.Agent(ctx, nil, opts...) }

func newRuntime(s *system, err error) (*Runtime, error) {
	if err != nil {
		return nil, err
	}
	return &Runtime{s}, nil
}
