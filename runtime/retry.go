package runtime

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"connectrpc.com/connect/v2"

	nodev1 "github.com/raylink/raylink/gen/raylink/node/v1"
	"github.com/raylink/raylink/internal/backoff"
	"github.com/raylink/raylink/internal/connecterr"
	"github.com/raylink/raylink/runtime/tunnel"
)

// RetryPolicy configures [Retry]. The zero value repeats calls that failed with Unavailable, up to
// three times.
type RetryPolicy struct {
	// MaxAttempts bounds how often a call is made, the first time included. The default is 4.
	MaxAttempts int
	// Codes are the codes of errors that a call is repeated for, in addition to Unavailable.
	Codes []connect.Code
	// FirstPause bounds the pause before the first repetition; each bound is twice the one before,
	// up to MaxPause. A pause is drawn at random from the upper half of its bound. The defaults are
	// 20 ms and 2 s.
	FirstPause, MaxPause time.Duration
}

const defaultAttempts = 4

// Retry returns a client interceptor that repeats unary calls that failed, in two cases:
//
//   - The schema marks the method by `option idempotency_level = IDEMPOTENT` (or NO_SIDE_EFFECTS),
//     so that running it twice is the same as running it once.
//   - The error says that the call was not run: errors.Is finds [tunnel.ErrNotRun] in it.
//
// The code of the error must be Unavailable or one of policy.Codes. A call is not repeated after
// its context has ended, nor if the context's deadline would pass during the pause, nor if the node
// is dead and will not be restarted. The attempts share the context's deadline.
//
// The error of a call that was repeated says how often it was made, and is otherwise that of the
// last attempt. Streams are never repeated.
func Retry(policy RetryPolicy) ClientInterceptor {
	if policy.MaxAttempts <= 0 {
		policy.MaxAttempts = defaultAttempts
	}
	codes := append([]connect.Code{connect.CodeUnavailable}, policy.Codes...)
	return func(next ClientInvoke) ClientInvoke {
		return func(ctx context.Context, in *ClientInvocation) error {
			err := next(ctx, in)
			if err == nil || policy.MaxAttempts == 1 || in.method.shape != connect.StreamTypeUnary {
				return err
			}
			return retry(ctx, in, next, err, policy, codes)
		}
	}
}

// retry repeats a call whose first attempt failed with err.
func retry(ctx context.Context, in *ClientInvocation, next ClientInvoke, err error, policy RetryPolicy, codes []connect.Code) error {
	req := in.Request
	pauses := backoff.Backoff{First: policy.FirstPause, Max: policy.MaxPause}
	mayHaveRun := false
	for attempts := 1; ; attempts++ {
		notRun := errors.Is(err, tunnel.ErrNotRun)
		mayHaveRun = mayHaveRun || !notRun
		if attempts == policy.MaxAttempts || ctx.Err() != nil || !in.method.Idempotent() && !notRun ||
			!slices.Contains(codes, connecterr.Code(err)) || isDeadForGood(in.Node) {
			return afterAttempts(err, attempts, mayHaveRun, "")
		}
		pause := pauses.Next()
		if deadline, ok := ctx.Deadline(); ok && time.Until(deadline) <= pause {
			return afterAttempts(err, attempts, mayHaveRun, "; its deadline leaves no time for another")
		}
		mayBlock(ctx)
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			ended := causeOf(ctx)
			return connect.Errorf(connecterr.Code(ended), "calling %s %s: %s between attempts; %s", in.to.label(), in.method.fullName(),
				connecterr.Text(ended), connecterr.Text(afterAttempts(err, attempts, true, ""))).WithCause(ended)
		}
		in.Request, in.Response = req, nil
		if err = next(ctx, in); err == nil {
			return nil
		}
	}
}

// isDeadForGood reports whether the node is known to have ended and not to be restarted.
func isDeadForGood(ref Ref) bool {
	rec := ref.record()
	return rec.GetState() == nodev1.NodeState_NODE_STATE_DEAD && !rec.GetRestarts()
}

// afterAttempts adds to the error of the last attempt how many there were, if there was more than
// one. Then the result matches [tunnel.ErrNotRun] only if none of them may have run.
func afterAttempts(err error, attempts int, mayHaveRun bool, why string) error {
	if attempts == 1 && why == "" {
		return err
	}
	times := fmt.Sprintf("%d attempts", attempts)
	if attempts == 1 {
		times = "1 attempt"
	}
	var cause error = &foreign{err: err, text: err.Error(), begun: mayHaveRun}
	out := connect.Errorf(connecterr.Code(err), "%s (after %s%s)", connecterr.Text(err), times, why).WithCause(cause)
	if e, ok := errors.AsType[*connect.Error](err); ok && e != nil {
		out = withDetailsOf(out, e)
		if e.IsRemote() {
			out = out.WithRemote()
		}
	}
	return out
}
