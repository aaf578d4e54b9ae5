package runtime

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connectproto"
	"google.golang.org/protobuf/proto"

	nodev1 "github.com/raylink/raylink/gen/raylink/node/v1"
	"github.com/raylink/raylink/internal/connecterr"
	"github.com/raylink/raylink/internal/usercode"
	"github.com/raylink/raylink/runtime/tunnel"
)

// convertError converts a method's error to the connect error that callers get, whatever the
// call's way:
//
//   - a *connect.Error of the node's own is kept;
//   - one that came from another node keeps code, message and details, and gains a hop in its
//     trace;
//   - the end of a context becomes Canceled or DeadlineExceeded; the end of the node, Unavailable;
//   - any other error becomes Unknown with its text, unless the process hides texts.
//
// A caller in the same process can still find the original with errors.Is and errors.As.
func (n *Node) convertError(cc *callContext, err error) error {
	m := cc.call.method
	if errors.Is(err, context.Canceled) && n.endedBefore(cc.caller) {
		return closedError(n.path, "stopped while it was in "+m.name).WithCause(err)
	}
	if _, own := err.(*connect.Error); !own || errors.Is(err, tunnel.ErrNotRun) { //nolint:errorlint // compares identity
		err = &foreign{err: err, text: err.Error(), begun: true}
	}
	if e, ok := errors.AsType[*connect.Error](err); ok && e != nil {
		if e.IsRemote() {
			return n.passOn(m, e, err)
		}
		if same, _ := err.(*connect.Error); same == e { //nolint:errorlint // only the identical value needs no wrapping
			return withoutInternalDetails(e)
		}
		// The node wrapped it: keep the wrapper's text, and the code and details of the wrapped
		// error.
		return withDetailsOf(connect.NewError(e.Code(), n.wording(m, err, e)).WithCause(err), e)
	}
	text := err.Error()
	if n.hideErrors() {
		n.logger().Error("a method failed; its error is hidden from the caller", slog.String("node", n.path),
			slog.String("method", m.fullName()), slog.Any("error", err))
		text = fmt.Sprintf("%s failed in %s", n.path, m.name)
	}
	out := connect.NewError(connecterr.Code(err), text).WithCause(err)
	if cc.caller.Err() != nil {
		return endedAt(out, n.path, m, running)
	}
	return out
}

const (
	// maxDetails bounds the details of an error that is passed on, to the same number as the
	// tunnel: adding a detail copies all those before it.
	maxDetails = 128
	// maxHops bounds an error's trace, for an error that is passed on again and again.
	maxHops = 64
)

// withHop appends a hop to a trace. At the limit it keeps the first half and the newest hops.
func withHop(hops []*nodev1.Hop, hop *nodev1.Hop) []*nodev1.Hop {
	if extra := len(hops) + 1 - maxHops; extra > 0 {
		hops = slices.Delete(hops, maxHops/2, maxHops/2+extra)
	}
	return append(hops, hop)
}

// passOn adds this node's hop to the trace of a remote error.
func (n *Node) passOn(m *Method, e *connect.Error, err error) error {
	trace := &nodev1.ErrorTrace{}
	name := string(trace.ProtoReflect().Descriptor().FullName())
	out := connect.NewError(e.Code(), n.wording(m, err, e)).WithCause(err)
	for i, d := range e.Details() {
		if d.Type != name {
			if i < maxDetails && !isInternalDetail(d) {
				out = out.WithDetail(d)
			}
			continue
		}
		// A trace that cannot be parsed is replaced; the error itself is kept.
		if proto.Unmarshal(d.Value, trace) != nil {
			trace.Reset()
		}
	}
	trace.Hops = withHop(trace.GetHops(), &nodev1.Hop{Node: n.path, Method: m.fullName()})
	if d, derr := connectproto.NewErrorDetail(trace); derr == nil {
		out = out.WithDetail(d)
	}
	return out
}

// foreign wraps an error made by user code, as the cause of one that the runtime made. Its text is
// captured once; afterwards only the methods that errors.Is and errors.As use are called, and a
// panic in them counts as "no match". If the error is that of a method that has begun, foreign
// hides a wrapped ErrNotRun, which is about a call that the method made.
type foreign struct {
	err   error
	text  string
	begun bool
}

// Error implements error.
func (f *foreign) Error() string { return f.text }

// Is is called by errors.Is.
func (f *foreign) Is(target error) (is bool) {
	defer func() {
		if recover() != nil {
			is = false
		}
	}()
	return (!f.begun || target != tunnel.ErrNotRun) && errors.Is(f.err, target)
}

// As is called by errors.As.
func (f *foreign) As(target any) (is bool) {
	defer func() {
		if recover() != nil {
			is = false
		}
	}()
	return errors.As(f.err, target)
}

// notHereName is the type of the detail that marks a dispatcher's refusal, see [isNotHere].
var notHereName = string((&nodev1.NotHere{}).ProtoReflect().Descriptor().FullName()) //nolint:gochecknoglobals // constant

// isInternalDetail reports whether a detail is only for the runtime that made the call.
func isInternalDetail(d *connect.ErrorDetail) bool { return d.Type == notHereName }

// withDetailsOf adds the details of another error, except internal ones.
func withDetailsOf(err, other *connect.Error) *connect.Error {
	for _, d := range other.Details() {
		if !isInternalDetail(d) {
			err = err.WithDetail(d)
		}
	}
	return err
}

// withoutInternalDetails is the error without what only the calling runtime may see.
func withoutInternalDetails(err error) error {
	e, ok := err.(*connect.Error) //nolint:errorlint // a wrapped error is converted anew, without internal details
	if !ok || !slices.ContainsFunc(e.Details(), isInternalDetail) {
		return err
	}
	out := withDetailsOf(connect.NewError(e.Code(), e.Message()).WithCause(err), e)
	if e.IsRemote() {
		out = out.WithRemote()
	}
	return out
}

// fromPeer marks an error as that of the called node, as opposed to one of the caller's side; ctx
// is the caller's, and its own end is not marked. It runs on goroutines of the runtime, so it calls
// no method of an error that user code has made.
func fromPeer(ctx context.Context, err error) error {
	e, ok := err.(*connect.Error) //nolint:errorlint // an error for the caller is of exactly this type
	if !ok || e.IsRemote() || ctx.Err() != nil && (e.Code() == connect.CodeCanceled || e.Code() == connect.CodeDeadlineExceeded) {
		return err
	}
	return e.WithRemote()
}

// wording is the text for the caller of an error that wraps e. Where texts are hidden it is e's own
// message, which was written for callers.
func (n *Node) wording(m *Method, err error, e *connect.Error) string {
	text := textOf(err, e)
	if !n.hideErrors() || text == e.Message() {
		return text
	}
	n.logger().Error("a method failed; its caller gets only the error that it wrapped", slog.String("node", n.path),
		slog.String("method", m.fullName()), slog.Any("error", err))
	return e.Message()
}

// textOf is the message of an error that wraps e, with the wrapper's text and without connect's
// code prefix if it adds none.
func textOf(err error, e *connect.Error) string {
	if err.Error() == e.Error() {
		return e.Message()
	}
	return err.Error()
}

// Trace returns the nodes through which an error was passed on, each with its path and method, the
// first to pass it on first. It is nil for an error that came directly from the called node.
func Trace(err error) []*nodev1.Hop {
	e, ok := errors.AsType[*connect.Error](err)
	if !ok {
		return nil
	}
	for _, d := range e.Details() {
		msg, uerr := connectproto.UnmarshalErrorDetail(d)
		if trace, ok := msg.(*nodev1.ErrorTrace); uerr == nil && ok {
			return trace.GetHops()
		}
	}
	return nil
}

// failed converts a panic or Goexit of a method to the error for its caller, and logs it, with the
// stack, for the node's owner.
func (n *Node) failed(m *Method, f *usercode.UnreturnedError) error {
	f.Log(n.logger(), "a method", slog.String("node", n.path), slog.String("method", m.fullName()))
	switch {
	case f.Goexit:
		return n.goexited(m)
	case n.hideErrors():
		return connect.Errorf(connect.CodeInternal, "%s panicked in %s", n.path, m.name)
	}
	return connect.Errorf(connect.CodeInternal, "%s panicked in %s: %s", n.path, m.name, f.Text)
}

// goexited is the error for the caller of a method that has ended its goroutine.
func (n *Node) goexited(m *Method) error {
	return connect.Errorf(connect.CodeInternal, "%s ended its goroutine instead of returning from %s", n.path, m.name)
}

// maxCauseBytes bounds the reason in a node's record of its end.
const maxCauseBytes = 4 << 10

// causeText converts an error's text to a cause that Brain accepts: bounded, and valid UTF-8. User
// code may have put anything into it, and the end of a node must be recorded nevertheless.
func causeText(text string) string {
	if len(text) > maxCauseBytes {
		text = text[:maxCauseBytes] + "..."
	}
	return strings.ToValidUTF8(text, "\uFFFD")
}

// closedError is the error of calls to a node that no longer accepts any.
func closedError(path, how string) *connect.Error {
	return connect.Errorf(connect.CodeUnavailable, "%s %s", path, how)
}

func errNoSystem() error {
	return connect.NewError(connect.CodeFailedPrecondition, "a node outside any system has no children, no tunnels and no end")
}

// errNoNode is the error of the zero Ref's calls.
func errNoNode() error {
	return connect.NewError(connect.CodeFailedPrecondition, "the handle reaches no node: it is the zero value; get one from Create, Find or a NodeRef")
}

// stage is how far a call had come when its caller's context ended, as worded in its error.
type stage string

const (
	// inMailbox, running, inSetup and heldBack are known to the node's side.
	inMailbox stage = "while it waited in the node's mailbox; it has not run"
	running   stage = "while it ran"
	inSetup   stage = "while it waited for the node's set-up; it has not run"
	heldBack  stage = "while its answer was held back; it has run"
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

// endedBefore reports whether the calls' contexts were canceled because the node is stopping, and
// not because of the caller, whose context is given.
func (n *Node) endedBefore(caller context.Context) bool {
	return n.work.Err() != nil && (caller.Err() == nil || errors.Is(context.Cause(caller), errNodeStopped))
}

// errNodeStopped ends the context of a call whose node stops without waiting for it.
var errNodeStopped = errors.New("the node stopped")
