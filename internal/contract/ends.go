package contract

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"runtime"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect/v2"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	contractv1 "github.com/raylink/raylink/internal/contract/gen/contract/v1"
	"github.com/raylink/raylink/internal/contract/gen/contract/v1/contractv1raylink"
	raylink "github.com/raylink/raylink/runtime"
)

// The keys of a call's number, in the request's and in the response's metadata.
const (
	raceKey     = "race"
	raceHeader  = "race-header"
	raceTrailer = "race-trailer"
)

// raceMetadata sets and reads a call's metadata from several goroutines, which continue after the
// method has returned.
func raceMetadata(c *raylink.Call) error {
	number := c.Metadata().Get(raceKey)
	var begun sync.WaitGroup
	for _, say := range []func(){
		func() { c.SetHeader(raceHeader, number) },
		func() { c.SetTrailer(raceTrailer, number) },
		func() {
			for range c.Metadata().All() {
				runtime.Gosched()
			}
		},
	} {
		begun.Add(1)
		go func() {
			for i := range 20 {
				if say(); i == 0 {
					begun.Done()
				}
				for range rand.IntN(10) {
					runtime.Gosched()
				}
			}
		}()
	}
	begun.Wait()
	return nil
}

// ends are the ways in which a call's context ends while its metadata is set.
var ends = []struct {
	name string
	of   func(ctx context.Context) (context.Context, context.CancelFunc)
}{
	{"answered", context.WithCancel},
	{"canceled", func(ctx context.Context) (context.Context, context.CancelFunc) {
		ctx, cancel := context.WithCancel(ctx)
		timer := time.AfterFunc(rand.N(2*time.Millisecond), cancel)
		return ctx, func() { timer.Stop(); cancel() }
	}},
	{"overdue", func(ctx context.Context) (context.Context, context.CancelFunc) {
		return context.WithTimeout(ctx, rand.N(2*time.Millisecond))
	}},
}

// callDuringEnds makes calls of every shape, whose metadata the node sets all the time, each with a
// different end, and checks that each response has the metadata of its own call. until ends it.
func callDuringEnds(t *testing.T, way Way, p *contractv1raylink.Probe, caller, times int, until <-chan struct{}) {
	for i := range times {
		select {
		case <-until:
			return
		default:
		}
		for n, s := range shapes(way) {
			end := ends[rand.IntN(len(ends))]
			number := fmt.Sprintf("%d.%d.%d", caller, i, n)
			ctx := raylink.WithMetadata(raylink.WithMetadata(patient(t), actionKey, "race"), raceKey, number)
			ctx, cancel := end.of(ctx)
			ctx, info := connect.NewClientContext(ctx)
			err := s.call(ctx, p)
			if end.name == "answered" && until == nil {
				if err != nil {
					t.Errorf("%s: %v", s.name, err)
				}
				assert.Contains(t, info.ResponseHeader().Values(raceHeader), number, s.name)
				assert.Contains(t, info.ResponseTrailer().Values(raceTrailer), number, s.name)
			}
			for _, values := range [][]string{
				info.ResponseHeader().Values(raceHeader), info.ResponseTrailer().Values(raceTrailer),
			} {
				for _, value := range values {
					assert.Equal(t, number, value, "%s has the metadata of another call", s.name)
				}
			}
			cancel()
		}
	}
}

// testMetadataRace is for the race detector too: a node sets and reads the metadata of calls that
// complete, are canceled or pass their deadline meanwhile, and continues when they are over.
func testMetadataRace(t *testing.T, way Way, p *contractv1raylink.Probe) {
	var callers sync.WaitGroup
	for i := range 3 {
		callers.Go(func() { callDuringEnds(t, way, p, i, 30, nil) })
	}
	callers.Wait()
}

// testMetadataRaceWithStop is the same while the node stops.
func testMetadataRaceWithStop(t *testing.T, way Way, peer Peer) {
	if peer.Near == nil {
		return // a node outside of systems can't be stopped
	}
	over := make(chan struct{})
	var callers sync.WaitGroup
	for i := range 3 {
		callers.Go(func() { callDuringEnds(t, way, peer.Probe, i, 1000, over) })
	}
	_, err := peer.Near.Add(patient(t), &contractv1.AddRequest{By: 1}) // the others have begun
	require.NoError(t, err)
	require.NoError(t, peer.Near.Ref().Stop(patient(t)))
	close(over)
	callers.Wait()
}

// burst is how many calls are open at once when their context ends.
const burst = 2000

// testBurst ends the context of very many calls at once. Each returns, and a call after them works
// on the same connection, and ends at its own deadline.
func testBurst(t *testing.T, _ Way, p *contractv1raylink.Probe) {
	for n, ends := range []func(context.Context) (context.Context, context.CancelFunc){
		context.WithCancel,
		func(ctx context.Context) (context.Context, context.CancelFunc) {
			return context.WithTimeout(ctx, 100*time.Millisecond)
		},
	} {
		ctx, cancel := ends(patient(t))
		all := make([]*raylink.Future[*contractv1.BlockResponse], burst)
		for i := range all {
			all[i] = p.BlockAsync(ctx, &contractv1.BlockRequest{Name: "never released"})
		}
		if n == 0 {
			cancel()
		}
		for i, f := range all {
			_, err := f.Get(patient(t))
			require.Contains(t, []connect.Code{connect.CodeCanceled, connect.CodeDeadlineExceeded, connect.CodeResourceExhausted},
				connect.CodeOf(err), "call %d: %v", i, err)
		}
		cancel()
		lone, end := context.WithCancel(patient(t))
		timer := time.AfterFunc(5*time.Millisecond, end)
		_, err := p.Block(lone, &contractv1.BlockRequest{Name: "alone"})
		timer.Stop()
		require.Equal(t, connect.CodeCanceled, connect.CodeOf(err), "%v", err)
		_, err = p.Add(patient(t), &contractv1.AddRequest{By: 1})
		require.NoError(t, err)
	}
}

// testLargeRequestIsOverdue cancels requests and messages of streams in transit.
func testLargeRequestIsOverdue(t *testing.T, _ Way, p *contractv1raylink.Probe) {
	payload := make([]byte, 8<<20)
	for range 5 {
		ctx, cancel := context.WithTimeout(patient(t), rand.N(20*time.Millisecond))
		_, err := p.Echo(ctx, &contractv1.EchoRequest{Payload: payload})
		if err != nil {
			require.Equal(t, connect.CodeDeadlineExceeded, connect.CodeOf(err), "%v", err)
		}
		stream, err := p.Count(ctx, &contractv1.CountRequest{To: 100, Payload: 1 << 20})
		for err == nil {
			_, err = stream.Receive()
		}
		if !errors.Is(err, io.EOF) {
			require.Equal(t, connect.CodeDeadlineExceeded, connect.CodeOf(err), "%v", err)
		}
		cancel()
	}
	res, err := p.Echo(patient(t), &contractv1.EchoRequest{Payload: payload[:1<<20]})
	require.NoError(t, err)
	require.Len(t, res.GetPayload(), 1<<20)
}

// pollError is the action of calls of Block that poll their context's error.
const pollError = "poll the error"

func polls(ctx context.Context) bool {
	return raylink.CallFrom(ctx).Metadata().Get(actionKey) == pollError
}

// testPolledDeadline has the deadline of a call pass that has waited in the mailbox, while its
// method asks for nothing but the error of its context. The method may be the first to notice.
func testPolledDeadline(t *testing.T, p *contractv1raylink.Probe) {
	first := p.BlockAsync(patient(t), &contractv1.BlockRequest{Name: "first"})
	eventually(t, p, "it did not begin", blocked("first"))
	ctx, cancel := context.WithTimeout(raylink.WithMetadata(patient(t), actionKey, pollError), 300*time.Millisecond)
	defer cancel()
	second := p.BlockAsync(ctx, &contractv1.BlockRequest{Name: "second"})
	_, err := p.Log(patient(t), nil) // the second call has arrived before
	require.NoError(t, err)
	_, err = p.Release(patient(t), &contractv1.ReleaseRequest{Name: "first"})
	require.NoError(t, err)
	_, err = first.Get(patient(t))
	require.NoError(t, err)
	_, err = second.Get(patient(t))
	require.Equal(t, connect.CodeDeadlineExceeded, connect.CodeOf(err), "%v", err)
	_, err = p.Add(patient(t), nil)
	require.NoError(t, err, "its turn has not ended")
}
