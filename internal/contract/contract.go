package contract

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connectproto"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/emptypb"

	contractv1 "github.com/raylink/raylink/internal/contract/gen/contract/v1"
	"github.com/raylink/raylink/internal/contract/gen/contract/v1/contractv1raylink"
	raylink "github.com/raylink/raylink/runtime"
)

// Way is one way that calls can take.
type Way struct {
	// Name is what [raylink.CallFrom] reports of a call.
	Name raylink.Way
	// Local is set if caller and node share a process, so that errors keep their identity.
	Local bool
	// HalfDuplex is set if a response begins only when the request has ended, as over HTTP/1.1.
	// Bidi streams are refused there.
	HalfDuplex bool
	// JSON is set if messages are encoded as JSON.
	JSON bool
	// EndsOnClose is set if a node can't distinguish a stream of requests that was abandoned from
	// one that has ended: connect's in-process transport ends it first.
	EndsOnClose bool
	// Foreign is set if the caller is a plain connect client, not a handle of the runtime. Where
	// ways may differ: such calls carry neither their caller nor the chain of waiting turns, so a
	// cycle ends only at its deadline; and only the calls of one handle are in order.
	Foreign bool
	// Open makes a fresh node, which ends with the test. The nodes of one way are in one system and
	// reach each other by that way.
	Open func(t *testing.T) Peer
}

// Peer is a node at the end of a way.
type Peer struct {
	*contractv1raylink.Probe

	// Path and NID are the node's; NID is empty where the caller can't know it.
	Path, NID string
	// Reach is how other nodes of the way reach the node.
	Reach *contractv1.Reach
	// Again makes another handle of the node; nil where each handle has a mailbox of its own.
	Again func(t *testing.T) *contractv1raylink.Probe
	// Near is a handle of the runtime, whatever the way; nil outside of systems.
	Near *contractv1raylink.Probe
}

// Patience bounds every wait. A test that reaches it fails.
const Patience = time.Minute

type callTest struct {
	name string
	run  func(t *testing.T, way Way, p *contractv1raylink.Probe)
}

type hopTest struct {
	name string
	run  func(t *testing.T, way Way, a, b Peer)
}

// Run checks all promises of calls over one way.
func Run(t *testing.T, way Way) {
	t.Helper()
	tests := []callTest{
		{"calls change the node's state one at a time", testAdd},
		{"async calls run in the order in which they were made", testAsyncOrder},
		{"a sync call follows the async calls before it", testSyncAfterAsync},
		{"nil is the empty message", testNil},
		{"large messages arrive whole", testLarge},
		{"errors keep code, message and details", testErrors},
		{"a plain error is unknown with its text", testPlainError},
		{"a panic is the caller's error and the node continues", testPanic},
		{"a method that ends its goroutine fails its caller", testGoexit},
		{"a passed deadline ends the wait and the method's context", testDeadline},
		{"a canceled call ends at once", testCancel},
		{"a call that is canceled in the mailbox never runs", testCancelQueued},
		{"a full mailbox refuses calls with its bound and the oldest call", testFull},
		{"concurrent methods run without a turn", testConcurrent},
		{"metadata reaches the node, and the response's metadata its caller", testMetadata},
		{"credentials do not reach the node", testCredentials},
		{"metadata of one call is not that of the next", testNoLeak},
		{"futures can be read often and concurrently", testFuture},
		{"wait and gather", testGather},
		{"a server stream delivers all messages and then its end", testCount},
		{"a server stream's error comes after its messages", testCountFails},
		{"a server stream can be abandoned", testAbandon},
		{"a client stream has one response", testSum},
		{"a client stream's error reaches its sender", testSumFails},
		{"a stream takes turns with calls", testTurnsOfStreams},
		{"a canceled context calls nothing", testCanceledBefore},
		{"a method runs once, whatever its error says", testOnce},
		{"a stream method that does not return fails its caller", testStreamGoexit},
		{"misuse of a stream has the same error on every way", testMisuse},
		{"calls leave nothing in their context", testLeftBehind},
		{"metadata is set while its calls end", testMetadataRace},
		{"very many calls whose context ends all return, and later calls work", testBurst},
		{"large messages can be canceled in transit", testLargeRequestIsOverdue},
	}
	tests = append(tests, carryTests()...)
	if !way.EndsOnClose {
		tests = append(tests, callTest{"an abandoned client stream is not mistaken for a complete one", testAbandonSum})
	}
	if way.HalfDuplex {
		tests = append(tests, callTest{"a bidi stream is refused with the reason", testChatRefused})
	} else {
		tests = append(tests,
			callTest{"a bidi stream carries messages both ways", testChat},
			callTest{"a bidi stream that the node ends is over for its caller", testChatNodeEnds},
			callTest{"a bidi stream's context ends it on both sides", testChatCancel},
			callTest{"a bidi stream's context ends a blocked receive", testChatCancelWaiting},
			callTest{"closing a bidi stream ends a blocked receive", testChatCloseWaiting})
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) { test.run(t, way, way.Open(t).Probe) })
	}
	hops := []hopTest{
		{"a node that is called by another gets its path", testHop},
		{"metadata is not passed on to further calls", testHopMetadata},
		{"an error that is passed on is kept and gains a hop", testHopError},
		{"a deadline is passed on to further calls", testHopDeadline},
		{"a passed deadline ends both methods", testHopOverdue},
		{"a canceled call ends both methods", testHopCancel},
		{"streams can be relayed", testHopStreams},
		{"a method that passes on a refusal has run, and runs once", testHopOnce},
		{"a method that has given its turn back can be called by those that it calls", testHopEndsTurn},
	}
	if way.Foreign {
		hops = append(hops, hopTest{"a cycle ends at its deadline", testCycleOverdue})
	} else {
		hops = append(hops,
			hopTest{"a direct cycle is refused at once, with the chain", testCycle},
			hopTest{"a node's call to itself is refused, also an async one that it waits for", testSelf})
	}
	for _, test := range hops {
		t.Run(test.name, func(t *testing.T) { test.run(t, way, way.Open(t), way.Open(t)) })
	}
	t.Run("metadata is set while its node ends", func(t *testing.T) { testMetadataRaceWithStop(t, way, way.Open(t)) })
	t.Run("a method that has given its turn back can wait for later calls", func(t *testing.T) { testEndTurn(t, way, way.Open(t)) })
	t.Run("a method that has given its turn back creates nodes", func(t *testing.T) { testCreateAfterTurn(t, way.Open(t)) })
	t.Run("an answer is held until its release", func(t *testing.T) { testHold(t, way, way.Open(t)) })
	t.Run("the callers of held answers end", func(t *testing.T) { testHeldEnds(t, way, way.Open(t).Probe) })
	if !way.Foreign { // such a handle sends its next call when the last one has returned
		t.Run("calls that have given their turn back are bounded", func(t *testing.T) { testTurnlessBound(t, way.Open(t).Probe, endTurn) })
		t.Run("a method that waited polls the error of its context", func(t *testing.T) { testPolledDeadline(t, way.Open(t).Probe) })
		t.Run("calls whose answers are held are bounded", func(t *testing.T) { testTurnlessBound(t, way.Open(t).Probe, holdAnswer) })
	}
	t.Run("calls of one caller are in order", func(t *testing.T) { testHandles(t, way, way.Open(t)) })
}

func patient(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), Patience)
	t.Cleanup(cancel)
	return ctx
}

// eventually waits until a condition holds for the node.
func eventually(t *testing.T, p *contractv1raylink.Probe, what string, is func(*contractv1.LogResponse) bool) {
	t.Helper()
	require.Eventually(t, func() bool {
		log, err := p.Log(t.Context(), nil)
		return err == nil && is(log)
	}, Patience, 2*time.Millisecond, what)
}

func blocked(name string) func(*contractv1.LogResponse) bool {
	return func(l *contractv1.LogResponse) bool { return slices.Contains(l.GetBlocked(), name) }
}

func cancelled(name string) func(*contractv1.LogResponse) bool {
	return func(l *contractv1.LogResponse) bool { return slices.Contains(l.GetCancelled(), name) }
}

func testAdd(t *testing.T, _ Way, p *contractv1raylink.Probe) {
	ctx := patient(t)
	for i := range int64(10) {
		res, err := p.Add(ctx, &contractv1.AddRequest{By: 1})
		require.NoError(t, err)
		require.Equal(t, i+1, res.GetSum())
	}
}

func testAsyncOrder(t *testing.T, _ Way, p *contractv1raylink.Probe) {
	ctx := patient(t)
	const n = 50
	futures := make([]*raylink.Future[*contractv1.AddResponse], n)
	for i := range futures {
		futures[i] = p.AddAsync(ctx, &contractv1.AddRequest{By: int64(i)})
	}
	_, err := raylink.Gather(ctx, futures...)
	require.NoError(t, err)
	log, err := p.Log(ctx, nil)
	require.NoError(t, err)
	for i, by := range log.GetAdded() {
		require.Equal(t, int64(i), by, "call %d ran out of order", i)
	}
	require.Len(t, log.GetAdded(), n)
}

func testSyncAfterAsync(t *testing.T, _ Way, p *contractv1raylink.Probe) {
	ctx := patient(t)
	for i := range int64(20) {
		f := p.AddAsync(ctx, &contractv1.AddRequest{By: 1})
		res, err := p.Add(ctx, &contractv1.AddRequest{By: 1})
		require.NoError(t, err)
		require.Equal(t, 2*i+2, res.GetSum(), "the sync call overtook the async calls")
		_, err = f.Get(ctx)
		require.NoError(t, err)
	}
}

func testNil(t *testing.T, _ Way, p *contractv1raylink.Probe) {
	ctx := patient(t)
	res, err := p.Add(ctx, nil)
	require.NoError(t, err)
	assert.Zero(t, res.GetSum())
	fail, err := p.Fail(ctx, &contractv1.FailRequest{Nothing: true})
	require.NoError(t, err)
	assert.NotNil(t, fail)
	empty, err := p.Nothing(ctx, &emptypb.Empty{})
	require.NoError(t, err)
	assert.NotNil(t, empty)
	got, err := p.AddAsync(ctx, nil).Get(ctx)
	require.NoError(t, err)
	assert.NotNil(t, got)
}

func testLarge(t *testing.T, _ Way, p *contractv1raylink.Probe) {
	payload := make([]byte, 5<<20) // more than connect's default limit of 4 MiB
	for i := range payload {
		payload[i] = byte(i * 7)
	}
	res, err := p.Echo(patient(t), &contractv1.EchoRequest{Payload: payload})
	require.NoError(t, err)
	assert.Equal(t, payload, res.GetPayload())
}

func testErrors(t *testing.T, _ Way, p *contractv1raylink.Probe) {
	ctx := patient(t)
	for code := connect.CodeCanceled; code <= connect.CodeUnauthenticated; code++ {
		_, err := p.Fail(ctx, &contractv1.FailRequest{Code: uint32(code), Message: "no: " + code.String(), Detail: "more of it"})
		require.Error(t, err)
		e, ok := errors.AsType[*connect.Error](err)
		require.True(t, ok, "%v", err)
		require.Equal(t, code, e.Code(), "%v", err)
		require.Equal(t, "no: "+code.String(), e.Message())
		require.Len(t, e.Details(), 1)
		d, err := connectproto.UnmarshalErrorDetail(e.Details()[0])
		require.NoError(t, err)
		require.Equal(t, "more of it", d.(*contractv1.Detail).GetText())
	}
}

func testPlainError(t *testing.T, way Way, p *contractv1raylink.Probe) {
	_, err := p.Fail(patient(t), &contractv1.FailRequest{Message: "out of paper"})
	require.Error(t, err)
	assert.Equal(t, connect.CodeUnknown, connect.CodeOf(err))
	assert.Contains(t, err.Error(), "out of paper: a plain error")
	// Where ways may differ: the error itself can be found only inside one process.
	assert.Equal(t, way.Local, errors.Is(err, ErrPlain))
}

func testPanic(t *testing.T, _ Way, p *contractv1raylink.Probe) {
	ctx := patient(t)
	_, err := p.Fail(ctx, &contractv1.FailRequest{Panic: true, Message: "the disk is on fire"})
	require.Error(t, err)
	assert.Equal(t, connect.CodeInternal, connect.CodeOf(err))
	assert.Contains(t, err.Error(), "the disk is on fire")
	res, err := p.Add(ctx, &contractv1.AddRequest{By: 3})
	require.NoError(t, err)
	assert.Equal(t, int64(3), res.GetSum())
}

func testGoexit(t *testing.T, way Way, p *contractv1raylink.Probe) {
	ctx := patient(t)
	if way.Local {
		// A sync call to an idle node runs on this goroutine, which would end.
		_, err := p.FailAsync(ctx, &contractv1.FailRequest{Goexit: true}).Get(ctx)
		require.Equal(t, connect.CodeInternal, connect.CodeOf(err), "%v", err)
	} else {
		_, err := p.Fail(ctx, &contractv1.FailRequest{Goexit: true})
		require.Error(t, err)
	}
	res, err := p.Add(ctx, &contractv1.AddRequest{By: 3})
	require.NoError(t, err)
	assert.Equal(t, int64(3), res.GetSum())
}

func testDeadline(t *testing.T, _ Way, p *contractv1raylink.Probe) {
	// On a busy machine a short deadline may pass before the call has reached the node. Then there
	// is no method with a context to end.
	for timeout := 50 * time.Millisecond; ; timeout *= 2 {
		require.Less(t, timeout, Patience, "it did not begin")
		ctx, cancel := context.WithTimeout(t.Context(), timeout)
		_, err := p.Block(ctx, &contractv1.BlockRequest{Name: "for ever"})
		cancel()
		require.Error(t, err)
		assert.Equal(t, connect.CodeDeadlineExceeded, connect.CodeOf(err), "%v", err)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		log, err := p.Log(patient(t), nil)
		require.NoError(t, err)
		if blocked("for ever")(log) {
			break
		}
	}
	eventually(t, p, "the method's context did not end", cancelled("for ever"))
}

func testCancel(t *testing.T, _ Way, p *contractv1raylink.Probe) {
	ctx, cancel := context.WithCancel(patient(t))
	f := p.BlockAsync(ctx, &contractv1.BlockRequest{Name: "a"})
	eventually(t, p, "it did not begin", blocked("a"))
	cancel()
	_, err := f.Get(patient(t))
	assert.Equal(t, connect.CodeCanceled, connect.CodeOf(err), "%v", err)
	require.ErrorIs(t, err, context.Canceled)
	eventually(t, p, "the method's context did not end", cancelled("a"))

	f = p.BlockAsync(patient(t), &contractv1.BlockRequest{Name: "b"})
	eventually(t, p, "it did not begin", blocked("b"))
	f.Cancel()
	_, err = f.Get(patient(t))
	assert.Equal(t, connect.CodeCanceled, connect.CodeOf(err), "%v", err)
	eventually(t, p, "the method's context did not end", cancelled("b"))
}

func testCancelQueued(t *testing.T, _ Way, p *contractv1raylink.Probe) {
	ctx := patient(t)
	holder := p.BlockBesideAsync(ctx, &contractv1.BlockRequest{Name: "unused"})
	holder.Cancel()
	turn := p.BlockAsync(ctx, &contractv1.BlockRequest{Name: "turn"})
	eventually(t, p, "it did not begin", blocked("turn"))
	queued, cancel := context.WithTimeout(ctx, 30*time.Millisecond)
	defer cancel()
	_, err := p.Add(queued, &contractv1.AddRequest{By: 1000})
	require.Equal(t, connect.CodeDeadlineExceeded, connect.CodeOf(err), "%v", err)
	f := p.AddAsync(ctx, &contractv1.AddRequest{By: 1000})
	f.Cancel()
	_, err = f.Get(ctx)
	require.Equal(t, connect.CodeCanceled, connect.CodeOf(err), "%v", err)
	_, err = p.Release(ctx, &contractv1.ReleaseRequest{Name: "turn"})
	require.NoError(t, err)
	_, err = turn.Get(ctx)
	require.NoError(t, err)
	res, err := p.Add(ctx, &contractv1.AddRequest{By: 1})
	require.NoError(t, err)
	assert.Equal(t, int64(1), res.GetSum(), "a canceled call ran")
}

func testFull(t *testing.T, _ Way, p *contractv1raylink.Probe) {
	ctx := patient(t)
	turn := p.BlockAsync(ctx, &contractv1.BlockRequest{Name: "turn"})
	eventually(t, p, "it did not begin", blocked("turn"))
	// 64 is the schema's max_pending. Each call has a goroutine, for ways that can't pipeline.
	errs := make(chan error, 80)
	for range 80 {
		go func() {
			_, err := p.Add(ctx, &contractv1.AddRequest{By: 1})
			errs <- err
		}()
	}
	for range 16 {
		err := <-errs
		require.Equal(t, connect.CodeResourceExhausted, connect.CodeOf(err), "%v", err)
		require.Contains(t, err.Error(), "64 calls wait")
		require.Contains(t, err.Error(), "the oldest is Add")
	}
	_, err := p.Release(ctx, &contractv1.ReleaseRequest{Name: "turn"})
	require.NoError(t, err)
	for range 64 {
		require.NoError(t, <-errs)
	}
	_, err = turn.Get(ctx)
	require.NoError(t, err)
}

func testConcurrent(t *testing.T, _ Way, p *contractv1raylink.Probe) {
	ctx := patient(t)
	turn := p.BlockAsync(ctx, &contractv1.BlockRequest{Name: "turn"})
	eventually(t, p, "it did not begin", blocked("turn"))
	res, err := p.Echo(ctx, &contractv1.EchoRequest{Payload: []byte("x")})
	require.NoError(t, err)
	assert.Equal(t, "x", string(res.GetPayload()))
	beside := p.BlockBesideAsync(ctx, &contractv1.BlockRequest{Name: "beside"})
	if _, err := p.Release(ctx, &contractv1.ReleaseRequest{Name: "beside"}); err != nil {
		require.NoError(t, err)
	}
	_, err = beside.Get(ctx)
	require.NoError(t, err)
	_, err = p.Release(ctx, &contractv1.ReleaseRequest{Name: "turn"})
	require.NoError(t, err)
	_, err = turn.Get(ctx)
	require.NoError(t, err)
}

func testMetadata(t *testing.T, way Way, p *contractv1raylink.Probe) {
	ctx, info := connect.NewClientContext(raylink.WithMetadata(raylink.WithMetadata(patient(t), "Tenant", "a"), "tenant", "b"))
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	res, err := p.Who(ctx, &contractv1.WhoRequest{Key: "TENANT", Header: "h", Trailer: "t"})
	require.NoError(t, err)
	assert.Equal(t, []string{"a", "b"}, res.GetMetadata())
	assert.Equal(t, string(way.Name), res.GetWay())
	assert.Empty(t, res.GetCallerPath(), "a test is not a node")
	assert.True(t, res.GetHasDeadline())
	assert.Greater(t, res.GetRemaining().AsDuration(), time.Second)
	assert.LessOrEqual(t, res.GetRemaining().AsDuration(), time.Minute)
	assert.Equal(t, "h", info.ResponseHeader().Get("probe-header"))
	assert.Equal(t, "t", info.ResponseTrailer().Get("probe-trailer"))
}

// testCredentials sends the metadata that only the listener may see.
func testCredentials(t *testing.T, _ Way, p *contractv1raylink.Probe) {
	keys := []string{"Authorization", "Proxy-Authorization", "Cookie"}
	ctx, info := connect.NewClientContext(raylink.WithMetadata(patient(t), "tenant", "a"))
	for _, key := range keys {
		_, err := p.Who(raylink.WithMetadata(ctx, key, "s3cret=1"), nil)
		require.Equal(t, connect.CodeInvalidArgument, connect.CodeOf(err), "%s: %v", key, err)
		info.RequestHeader().Add(key, "s3cret=2")
	}
	for _, key := range append(keys, "tenant") {
		res, err := p.Who(ctx, &contractv1.WhoRequest{Key: key})
		require.NoError(t, err)
		async, err := p.WhoAsync(ctx, &contractv1.WhoRequest{Key: key}).Get(ctx)
		require.NoError(t, err)
		for _, res := range []*contractv1.WhoResponse{res, async} {
			if key == "tenant" {
				assert.NotEmpty(t, res.GetMetadata())
			} else {
				assert.Empty(t, res.GetMetadata(), key)
			}
		}
	}
}

func testNoLeak(t *testing.T, _ Way, p *contractv1raylink.Probe) {
	ctx := patient(t)
	_, err := p.Who(raylink.WithMetadata(ctx, "tenant", "a"), &contractv1.WhoRequest{Key: "tenant"})
	require.NoError(t, err)
	res, err := p.Who(ctx, &contractv1.WhoRequest{Key: "tenant"})
	require.NoError(t, err)
	assert.Empty(t, res.GetMetadata())
}

func testFuture(t *testing.T, _ Way, p *contractv1raylink.Probe) {
	ctx := patient(t)
	f := p.BlockAsync(ctx, &contractv1.BlockRequest{Name: "x"})
	impatient, cancel := context.WithTimeout(ctx, 10*time.Millisecond)
	defer cancel()
	_, err := f.Get(impatient)
	require.Equal(t, connect.CodeDeadlineExceeded, connect.CodeOf(err))
	_, err = p.Release(ctx, &contractv1.ReleaseRequest{Name: "x"})
	require.NoError(t, err)
	for range 3 {
		_, err = f.Get(ctx)
		require.NoError(t, err, "a Get that gave up must not cancel the call")
	}
	<-f.Done()
}

func testGather(t *testing.T, _ Way, p *contractv1raylink.Probe) {
	ctx := patient(t)
	slow := p.BlockBesideAsync(ctx, &contractv1.BlockRequest{Name: "slow"})
	_, err := p.EchoAsync(ctx, nil).Get(ctx)
	if err != nil {
		// A way that can't pipeline sends the second call after the first.
		require.NoError(t, err)
	}
	_, err = p.Release(ctx, &contractv1.ReleaseRequest{Name: "slow"})
	require.NoError(t, err)
	_, err = slow.Get(ctx)
	require.NoError(t, err)

	good := p.AddAsync(ctx, &contractv1.AddRequest{By: 1})
	bad := p.AddAsync(ctx, &contractv1.AddRequest{By: 1})
	results, err := raylink.Gather(ctx, good, bad)
	require.NoError(t, err)
	assert.Equal(t, int64(2), results[1].GetSum())
	done, pending, err := raylink.Wait(ctx, 5, good, bad)
	require.NoError(t, err)
	assert.Len(t, done, 2)
	assert.Empty(t, pending)
	fails := p.FailAsync(ctx, &contractv1.FailRequest{Code: uint32(connect.CodeAborted), Message: "m"})
	_, err = raylink.Gather(ctx, fails)
	assert.Equal(t, connect.CodeAborted, connect.CodeOf(err))
}

func testCanceledBefore(t *testing.T, _ Way, p *contractv1raylink.Probe) {
	ctx, cancel := context.WithCancel(patient(t))
	cancel()
	_, err := p.Add(ctx, &contractv1.AddRequest{By: 1})
	require.Equal(t, connect.CodeCanceled, connect.CodeOf(err), "%v", err)
	_, err = p.AddAsync(ctx, &contractv1.AddRequest{By: 1}).Get(patient(t))
	require.Equal(t, connect.CodeCanceled, connect.CodeOf(err), "%v", err)
	log, err := p.Log(patient(t), nil)
	require.NoError(t, err)
	assert.Empty(t, log.GetAdded())
}
