package runtime

import (
	"context"
	"errors"

	"connectrpc.com/connect/v2"
)

// stage is how far a call had come when its caller's context ended, as worded in its error.
type stage string

const (
	// inMailbox, running and inSetup are known to the node's side.
	inMailbox stage = "while it waited in the node's mailbox; it has not run"
	running   stage = "while it ran"
	inSetup   stage = "while it waited for the node's set-up; it has not run"
	// unsent, unanswered and streaming are known to the caller's side.
	unsent     stage = "before it was sent; it has not run"
	unanswered stage = "before the node's answer came; it may have waited or run"
	streaming  stage = "while its stream was open"
)

// endedAt adds to the error of an ended context which call it was, of which node, and how far it
// had come. Other errors are returned as they are.
func endedAt(err error, path string, m *Method, at stage) error {
	e, ok := errors.AsType[*connect.Error](err)
	if !ok || e.IsRemote() || e.Code() != connect.CodeDeadlineExceeded && e.Code() != connect.CodeCanceled {
		return err
	}
	return connect.Errorf(e.Code(), "calling %s %s: %s %s", path, m.fullName(), e.Message(), at).WithCause(err)
}

// ended is the error of a call to the node whose context, ctx, has ended.
func (n *Node) ended(ctx context.Context, m *Method, at stage) error {
	return endedAt(causeOf(ctx), n.path, m, at)
}
