package contract

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"testing"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connectproto"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	nodev1 "github.com/raylink/raylink/gen/raylink/node/v1"
	contractv1 "github.com/raylink/raylink/internal/contract/gen/contract/v1"
	"github.com/raylink/raylink/internal/contract/gen/contract/v1/contractv1raylink"
	raylink "github.com/raylink/raylink/runtime"
	"github.com/raylink/raylink/runtime/tunnel"
)

// forge is the text that makes the probe fail with an error that looks as if the call had not
// begun. The number after it selects the code and the form of the error.
const forge = "forge "

// forgeries is the number of such errors.
const forgeries = 4 * int(connect.CodeUnauthenticated)

// forged returns an error of a method that has run which claims the opposite, in every way that is
// open to a node's code.
func forged(which int) error {
	moved, err := connectproto.NewErrorDetail(&nodev1.NotHere{Nid: "00000000-0000-0000-0000-000000000000"})
	if err != nil {
		return err
	}
	e := connect.NewError(connect.Code(which%int(connect.CodeUnauthenticated)+1), "this was not run").WithDetail(moved).WithCause(tunnel.ErrNotRun)
	switch which / int(connect.CodeUnauthenticated) {
	case 1:
		return fmt.Errorf("wrapped: %w", e)
	case 2:
		return e.WithRemote()
	case 3:
		return errors.Join(tunnel.ErrNotRun, context.Canceled, e)
	}
	return e
}

// forgery parses a text that begins with [forge].
func forgery(text string) (which int, ok bool) {
	_, err := fmt.Sscanf(text, forge+"%d", &which)
	return which, err == nil
}

// count logs that a method has begun, and returns the forged error.
func (p *Probe) count(which int) error {
	p.mu.Lock()
	p.added = append(p.added, int64(which))
	p.mu.Unlock()
	return forged(which)
}

// testOnce has methods of every shape fail as if they had not begun. Each must have run once.
func testOnce(t *testing.T, way Way, p *contractv1raylink.Probe) {
	ctx := raylink.WithMetadata(patient(t), "idempotency-key", "a caller's metadata does not permit repetition")
	calls := []func(text string) error{
		func(text string) error { _, err := p.Relay(ctx, &contractv1.RelayRequest{What: text}); return err },
		func(text string) error {
			_, err := p.RelayAsync(ctx, &contractv1.RelayRequest{What: text}).Get(ctx)
			return err
		},
		func(text string) error {
			s, err := p.Count(ctx, &contractv1.CountRequest{Fail: text})
			if err != nil {
				return err
			}
			_, err = s.Receive()
			return err
		},
	}
	if !way.HalfDuplex {
		calls = append(calls, func(text string) error {
			s, err := p.Chat(ctx)
			if err != nil {
				return err
			}
			if err := s.Send(&contractv1.ChatRequest{Text: text}); err != nil && !errors.Is(err, io.EOF) {
				return err
			}
			_, err = s.Receive()
			return err
		})
	}
	began := 0
	for which := range forgeries {
		for i, call := range calls {
			err := call(fmt.Sprint(forge, which))
			require.Error(t, err)
			require.NotErrorIs(t, err, io.EOF)
			require.NotErrorIs(t, err, tunnel.ErrNotRun, "forgery %d, call %d: it has run", which, i)
			e, ok := errors.AsType[*connect.Error](err)
			require.True(t, ok)
			for _, d := range e.Details() {
				require.NotContains(t, d.Type, "NotHere", "internal details must not reach the caller")
			}
			began++
			log, err := p.Log(ctx, nil)
			require.NoError(t, err)
			require.Len(t, log.GetAdded(), began, "forgery %d, call %d did not run once: %v", which, i, err)
		}
	}
}

// testHopOnce has a node call another that is gone, and pass the refusal on. The node's own method
// has run.
func testHopOnce(t *testing.T, way Way, a, b Peer) {
	if b.Near == nil {
		return // a stub can't be stopped
	}
	ctx := patient(t)
	if !way.Foreign {
		_, err := a.Relay(ctx, &contractv1.RelayRequest{Next: b.Reach, What: "add"}) // opens a connection to b's host
		require.NoError(t, err)
	}
	require.NoError(t, b.Near.Ref().Stop(ctx))
	before, err := a.Log(ctx, nil)
	require.NoError(t, err)
	began := len(before.GetBlocked())
	for _, what := range []string{"streams", "add"} {
		for _, async := range []bool{false, true} {
			req := &contractv1.RelayRequest{Next: b.Reach, What: what, Async: async}
			if async {
				_, err = a.RelayAsync(ctx, req).Get(ctx)
			} else {
				_, err = a.Relay(ctx, req)
			}
			require.Error(t, err)
			require.NotErrorIs(t, err, tunnel.ErrNotRun)
			began++
			log, err := a.Log(ctx, nil)
			require.NoError(t, err)
			assert.Len(t, log.GetBlocked(), began, "%s (async %t) did not run once", what, async)
		}
	}
}

// refusals counts the calls that the interceptor refused with a forged error, by the name that the
// call carries.
var refusals sync.Map

// refusalKey is the metadata that names a call whose refusals are counted.
const refusalKey = "probe-refusal"

// refuseForged is the interceptor's result instead of running the method.
func refuseForged(call *raylink.Call) error {
	n, _ := refusals.LoadOrStore(call.Metadata().Get(refusalKey), new(atomic.Int64))
	n.(*atomic.Int64).Add(1)
	which, _ := forgery(call.Metadata().Get(interceptKey))
	return forged(which)
}

// testRefusedOnce has an interceptor refuse calls as if it had not run. It must have run once for
// each call.
func testRefusedOnce(t *testing.T, p Peer, with func(what string) context.Context) {
	t.Helper()
	for which := range forgeries {
		name := fmt.Sprint(t.Name(), which)
		ctx := raylink.WithMetadata(with(fmt.Sprint(forge, which)), refusalKey, name)
		_, err := p.Add(ctx, nil)
		require.Error(t, err)
		_, err = p.AddAsync(ctx, nil).Get(ctx)
		require.Error(t, err)
		s, err := p.Count(ctx, &contractv1.CountRequest{To: 1})
		if err == nil {
			_, err = s.Receive()
		}
		require.Error(t, err)
		require.NotErrorIs(t, err, io.EOF)
		n, ok := refusals.LoadAndDelete(name)
		require.True(t, ok)
		require.EqualValues(t, 3, n.(*atomic.Int64).Load(), "forgery %d was not refused once for each call", which)
	}
}
