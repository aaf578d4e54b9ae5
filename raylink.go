// Package raylink is the front door: it makes a process a part of a system of nodes.
//
// A program describes its nodes in .proto files, generates code for them, and calls [Init] with the types that it can host:
//
//	rt, err := raylink.Init(ctx, counterv1raylink.CounterType(newCounter))
//	if err != nil { ... }
//	defer rt.Close()
//	counter, err := counterv1raylink.CreateCounter(ctx, rt, &counterv1.CounterConfig{Start: 1})
//	sum, err := counter.Add(ctx, &counterv1.AddRequest{By: 2})
//
// A node gets a process of its own, which is this program once more: there, Init serves the node and never returns. So what comes before Init
// runs in every process, and what comes after it only in the driver.
//
// Without the address of a Brain, Init embeds one, which ends with the driver; other processes can join it by RAYLINK_BRAIN meanwhile. A binary
// that only ever joins can use package join instead, which is the same without the embedded Brain and a good deal smaller.
//
// What is an option here, an environment variable or a default is in [Options].
package raylink

import (
	"context"

	"github.com/raylink/raylink/brain"
	"github.com/raylink/raylink/internal/assemble"
	"github.com/raylink/raylink/runtime"
)

// Runtime is this process's part in a system: where nodes are created from, and found. Its methods may be called from any goroutine.
type Runtime = assemble.Runtime

// Option sets one of the [Options]. A node type is one.
type Option = runtime.Option

// Options are all that can be said of a runtime; an option goes before the environment, and that before the default.
type Options = runtime.Options

// The options, see the fields of [Options] of the same names.
var (
	WithBrain                = runtime.WithBrain                //nolint:gochecknoglobals // a name for a function
	WithBrainFromEnvironment = runtime.WithBrainFromEnvironment //nolint:gochecknoglobals // as above
	WithListen               = runtime.WithListen               //nolint:gochecknoglobals // as above
	WithAdvertise            = runtime.WithAdvertise            //nolint:gochecknoglobals // as above
	WithToken                = runtime.WithToken                //nolint:gochecknoglobals // as above
	WithOpen                 = runtime.WithOpen                 //nolint:gochecknoglobals // as above
	WithInsecure             = runtime.WithInsecure             //nolint:gochecknoglobals // as above
	WithOrigins              = runtime.WithOrigins              //nolint:gochecknoglobals // as above
	WithData                 = runtime.WithData                 //nolint:gochecknoglobals // as above
	WithLogger               = runtime.WithLogger               //nolint:gochecknoglobals // as above
	WithKeepRuns             = runtime.WithKeepRuns             //nolint:gochecknoglobals // as above
	WithOutput               = runtime.WithOutput               //nolint:gochecknoglobals // as above
	WithInterceptor          = runtime.WithInterceptor          //nolint:gochecknoglobals // as above
	WithHiddenErrors         = runtime.WithHiddenErrors         //nolint:gochecknoglobals // as above
	WithInProcess            = runtime.WithInProcess            //nolint:gochecknoglobals // as above
	WithDrain                = runtime.WithDrain                //nolint:gochecknoglobals // as above
	WithStartTimeout         = runtime.WithStartTimeout         //nolint:gochecknoglobals // as above
	WithLease                = runtime.WithLease                //nolint:gochecknoglobals // as above
	WithMaxMessage           = runtime.WithMaxMessage           //nolint:gochecknoglobals // as above
	WithBusyPoll             = runtime.WithBusyPoll             //nolint:gochecknoglobals // as above
	WithHeapFloor            = runtime.WithHeapFloor            //nolint:gochecknoglobals // as above
)

// Init joins the Brain that an option or RAYLINK_BRAIN names, or embeds one. Started as the host of a node it serves that and never returns. A
// second Init in a process is an error. The runtime ends, and the process with it, when the process is interrupted or terminated; otherwise the
// caller must Close it.
func Init(ctx context.Context, opts ...Option) (*Runtime, error) {
	return assemble.Init(ctx, embedded(), opts...)
}

// Start is for tests and for embedding: it makes a system without any claim on the process, as often as wanted. Nodes are created in this
// process unless an option of their creation says otherwise, and signals are left alone. It joins the Brain that WithBrain names, and not the one
// of RAYLINK_BRAIN, unless WithBrainFromEnvironment is given. The caller must Close the runtime.
func Start(ctx context.Context, opts ...Option) (*Runtime, error) {
	return assemble.Start(ctx, embedded(), opts...)
}

// embedded opens a Brain in this process. It ends with its driver, and its nodes with it: there is nothing to keep, so its store is in
// memory.
func embedded() *assemble.Embed {
	return &assemble.Embed{
		Open: func(options runtime.Options, _ string) (assemble.Brain, error) {
			return openBrain(brain.Options{}, options)
		},
		Furnish: assemble.FurnishHere,
	}
}
