package runtime

import (
	"context"

	"connectrpc.com/connect/v2"

	nodev1 "github.com/raylink/raylink/gen/raylink/node/v1"
)

// Ended blocks until the node's current incarnation has ended: it was stopped, it died, or it has
// been started again. Then it returns nil, and the cause in [Ref.Record] says how it ended, where
// that is known. If ctx ends first, Ended returns its error. It makes no call to the node: Brain
// reports its end, so any number of callers may wait.
func (r Ref) Ended(ctx context.Context) error {
	mayBlock(ctx)
	return r.endpoint().ended(ctx)
}

// errNoEnd is the error of waiting for the end of a node that is in no system.
func errNoEnd() error {
	return connect.NewError(connect.CodeFailedPrecondition, "waiting for a node's end: a stub outside of systems has none")
}

// ended blocks until the node's current incarnation has ended.
func (r *remote) ended(ctx context.Context) error {
	r.follow()
	incarnation := r.record().GetIncarnation()
	for {
		r.mu.Lock()
		rec, changed := r.known, r.changed
		r.mu.Unlock()
		if incarnation == 0 {
			incarnation = rec.GetIncarnation() // its record was unknown before
		}
		if rec.GetState() == nodev1.NodeState_NODE_STATE_DEAD || rec.GetIncarnation() > incarnation {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return causeOf(ctx)
		}
	}
}
