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
	"github.com/raylink/raylink/runtime/internal/usercode"
	"github.com/raylink/raylink/runtime/tunnel"
)

// author makes of a method's error what callers get, by every way:
//
//   - a node's own *connect.Error is kept;
//   - one that came from another node keeps code, message and details, and gains a hop of trace;
//   - the end of a context becomes Canceled or DeadlineExceeded; that of the node, Unavailable;
//   - any other error becomes Unknown with its text, unless the process hides texts.
//
// A caller in the same process can still find the original with errors.Is and errors.As.
func (n *Node) author(cc *callContext, err error) error {
	m := cc.call.method
	if n.work.Err() != nil && errors.Is(err, context.Canceled) &&
		(cc.caller.Err() == nil || errors.Is(context.Cause(cc.caller), errNodeStopped)) {
		// The method was told to end because the node does. Its caller has canceled nothing.
		return closedError(n.path, "stopped while it was in "+m.name).WithCause(err)
	}
	if _, own := err.(*connect.Error); !own || errors.Is(err, tunnel.ErrNotRun) { //nolint:errorlint // the very value
		err = &foreign{err: err, text: err.Error(), begun: true}
	}
	if e, ok := errors.AsType[*connect.Error](err); ok && e != nil {
		if e.IsRemote() {
			return n.passOn(m, e, err)
		}
		if same, _ := err.(*connect.Error); same == e { //nolint:errorlint // only the very value needs no wrapping
			return withoutInternalDetails(e)
		}
		// The node wrapped it: its own words go along, code and details stay.
		return withDetailsOf(connect.NewError(e.Code(), n.wording(m, err, e)).WithCause(err), e)
	}
	code, text := connect.CodeUnknown, err.Error()
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		code = connect.CodeDeadlineExceeded
	case errors.Is(err, context.Canceled):
		code = connect.CodeCanceled
	}
	if n.hideErrors() {
		n.logger().Error("a method failed; its caller is told no more than that", slog.String("node", n.path),
			slog.String("method", m.fullName()), slog.Any("error", err))
		text = fmt.Sprintf("%s failed in %s", n.path, m.name)
	}
	out := connect.NewError(code, text).WithCause(err)
	if cc.caller.Err() != nil {
		return endedAt(out, n.path, m, running)
	}
	return out
}

const (
	// maxDetails bounds the details of an error that is passed on, as the tunnel does: adding a
	// detail to an error copies those that it has.
	maxDetails = 128
	// maxHops bounds an error's trace, so that an error that goes round for long does not grow for
	// long.
	maxHops = 64
)

// withHop adds a hop to a trace. Of a trace that is at its bound the first half stays, and the
// newest hops.
func withHop(hops []*nodev1.Hop, hop *nodev1.Hop) []*nodev1.Hop {
	if extra := len(hops) + 1 - maxHops; extra > 0 {
		hops = slices.Delete(hops, maxHops/2, maxHops/2+extra)
	}
	return append(hops, hop)
}

// passOn adds this node's hop to a remote error's trace.
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
		// A trace that can't be read is no reason to lose the error.
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

// foreign is an error that was made by a user's code, as the cause of one that the runtime has
// authored. Its text is what it was then; of its own methods only those that errors.Is and
// errors.As use are called afterwards, and whatever they do does no harm to who asks. Where the
// error is one of a method that has begun, it hides that a call which the method made was not run.
type foreign struct {
	err   error
	text  string
	begun bool
}

// Error implements error.
func (f *foreign) Error() string { return f.text }

// Is implements the interface that errors.Is looks for.
func (f *foreign) Is(target error) (is bool) {
	defer func() {
		if recover() != nil {
			is = false
		}
	}()
	return (!f.begun || target != tunnel.ErrNotRun) && errors.Is(f.err, target)
}

// As implements the interface that errors.As looks for.
func (f *foreign) As(target any) (is bool) {
	defer func() {
		if recover() != nil {
			is = false
		}
	}()
	return errors.As(f.err, target)
}

// notHereName is the type of the detail that a dispatcher's refusal carries, see [isNotHere].
var notHereName = string((&nodev1.NotHere{}).ProtoReflect().Descriptor().FullName()) //nolint:gochecknoglobals // a constant

// isInternalDetail says whether a detail is for the runtime that made the call, and for nobody
// else.
func isInternalDetail(d *connect.ErrorDetail) bool { return d.Type == notHereName }

// withDetailsOf adds the details of another error, but for internal ones.
func withDetailsOf(err, other *connect.Error) *connect.Error {
	for _, d := range other.Details() {
		if !isInternalDetail(d) {
			err = err.WithDetail(d)
		}
	}
	return err
}

// withoutInternalDetails is an error for a caller, or of a node's own.
func withoutInternalDetails(err error) error {
	e, ok := err.(*connect.Error) //nolint:errorlint // what wraps another is authored anew, with the details that it may have
	if !ok || !slices.ContainsFunc(e.Details(), isInternalDetail) {
		return err
	}
	out := withDetailsOf(connect.NewError(e.Code(), e.Message()).WithCause(err), e)
	if e.IsRemote() {
		out = out.WithRemote()
	}
	return out
}

// fromPeer marks an error as the verdict of the node that was called, which is what it is to the
// caller, who called with ctx. That ctx ended is no verdict. It runs on goroutines of the runtime,
// so it asks nothing of errors that the node's code has made.
func fromPeer(ctx context.Context, err error) error {
	e, ok := err.(*connect.Error) //nolint:errorlint // an authored error is this very type
	if !ok || e.IsRemote() || ctx.Err() != nil && (e.Code() == connect.CodeCanceled || e.Code() == connect.CodeDeadlineExceeded) {
		return err
	}
	return e.WithRemote()
}

// wording is what a caller reads of an error that holds e somewhere: where plain texts are hidden,
// e's own message, which was written for callers.
func (n *Node) wording(m *Method, err error, e *connect.Error) string {
	text := textOf(err, e)
	if !n.hideErrors() || text == e.Message() {
		return text
	}
	n.logger().Error("a method failed; its caller is told no more than what it wrapped", slog.String("node", n.path),
		slog.String("method", m.fullName()), slog.Any("error", err))
	return e.Message()
}

// textOf is the message of an error that holds e somewhere: a wrapper's own words count, without
// connect's code in front of e's.
func textOf(err error, e *connect.Error) string {
	if err.Error() == e.Error() {
		return e.Message()
	}
	return err.Error()
}

// Trace returns the way that an error came: for each node that passed it on its path and the
// method, the first to do so first. It is nil for an error that came straight from the node that
// was called.
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

// failed makes of a method that did not return an error for its caller, and a log line, with the
// stack, for its owner.
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

// goexited is for the caller of a method that has ended its goroutine.
func (n *Node) goexited(m *Method) error {
	return connect.Errorf(connect.CodeInternal, "%s ended its goroutine instead of returning from %s", n.path, m.name)
}

// maxCauseBytes bounds what a node's record says of its end.
const maxCauseBytes = 4 << 10

// causeText makes of an error's text a cause that Brain accepts and every watcher can be sent: user
// code may have put anything into it, and a node's end must be recorded whatever its reason says.
func causeText(text string) string {
	if len(text) > maxCauseBytes {
		text = text[:maxCauseBytes] + "..."
	}
	return strings.ToValidUTF8(text, "\uFFFD")
}

// closedError is the one that calls to a node which no longer takes any get.
func closedError(path, how string) *connect.Error {
	return connect.Errorf(connect.CodeUnavailable, "%s %s", path, how)
}
