// Package join is the lean front door: a process that joins a running system, to host nodes or to call them, and never embeds a Brain. A binary
// that uses it links neither Brain nor its store; everything else is as in package raylink, whose documentation holds.
package join

import (
	"context"

	"github.com/raylink/raylink/internal/assemble"
	"github.com/raylink/raylink/runtime"
)

// Runtime is this process's part in a system.
type Runtime = assemble.Runtime

// Option sets one of the runtime's options. A node type is one.
type Option = runtime.Option

// Init joins the Brain that an option or RAYLINK_BRAIN names. Started as the host of a node it serves that and never returns. A second
// Init in a process is an error. The caller must Close the runtime.
func Init(ctx context.Context, opts ...Option) (*Runtime, error) {
	return assemble.Init(ctx, nil, opts...)
}

// Start is as Init, but without any claim on the process: it may be called as often as wanted, signals are left alone, and nodes are created in
// this process unless an option of their creation says otherwise.
func Start(ctx context.Context, opts ...Option) (*Runtime, error) {
	return assemble.Start(ctx, nil, opts...)
}
