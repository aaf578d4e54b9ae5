package session

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connectinprocess"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/durationpb"

	brainv1 "github.com/raylink/raylink/gen/raylink/brain/v1"
	"github.com/raylink/raylink/gen/raylink/brain/v1/brainv1connect"
	machinev1 "github.com/raylink/raylink/gen/raylink/machine/v1"
	nodev1 "github.com/raylink/raylink/gen/raylink/node/v1"
)

// fakeBrain answers the calls of a session as a test wants.
type fakeBrain struct {
	brainv1connect.UnimplementedBrainServiceHandler

	hello  func() (*brainv1.HelloResponse, error)
	attach func(context.Context, brainv1connect.BrainServiceAttachServerStream) error
	watch  func(context.Context, brainv1connect.BrainServiceWatchServerStream) error
}

func (b *fakeBrain) Hello(context.Context, *brainv1.HelloRequest) (*brainv1.HelloResponse, error) {
	return b.hello()
}

func (b *fakeBrain) Attach(ctx context.Context, s brainv1connect.BrainServiceAttachServerStream) error {
	return b.attach(ctx, s)
}

func (b *fakeBrain) Watch(ctx context.Context, s brainv1connect.BrainServiceWatchServerStream) error {
	return b.watch(ctx, s)
}

// fakeHost records what a session notifies it of.
type fakeHost struct {
	mu       sync.Mutex
	records  []*nodev1.NodeRecord
	dead     []string
	policies []*brainv1.WebPolicy
}

func (*fakeHost) Info() *nodev1.HostInfo      { return &nodev1.HostInfo{Id: "the host"} }
func (*fakeHost) Machine() *machinev1.Machine { return nil }

func (*fakeHost) Nodes() []*nodev1.NodeRef { return []*nodev1.NodeRef{{Nid: "mine"}} }

func (h *fakeHost) OnAccess(*brainv1.AccessPolicy) {}

func (h *fakeHost) OnExpelled(error) {}

func (h *fakeHost) OnPolicy(p *brainv1.WebPolicy) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.policies = append(h.policies, p)
}

func (h *fakeHost) OnRecord(rec *nodev1.NodeRecord) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.records = append(h.records, rec)
}

func (h *fakeHost) OnDeclaredDead(nid string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.dead = append(h.dead, nid)
}

func (h *fakeHost) seen() []*nodev1.NodeRecord {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.records
}

func clientOf(b *fakeBrain) brainv1connect.BrainServiceClient {
	server := connect.NewServer()
	brainv1connect.RegisterBrainServiceHandler(server, b)
	return brainv1connect.NewBrainServiceClient(connect.NewClient(connectinprocess.New(server)))
}

// start is a session with b that has not begun.
func start(t *testing.T, b *fakeBrain, lease time.Duration) (*Session, *fakeHost) {
	t.Helper()
	host := &fakeHost{}
	return newSession(Config{Host: host, Brain: clientOf(b), Address: "brain:1", Log: slog.New(slog.DiscardHandler)},
		&brainv1.HelloResponse{Lease: durationpb.New(lease), BrainId: "the first"}), host
}

// spawn makes the session's goroutines end with the returned function.
func spawn(s *Session) (end func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var all sync.WaitGroup
	s.config.Spawn = func(fn func(context.Context)) bool {
		all.Go(func() { fn(ctx) })
		return true
	}
	return func() {
		cancel()
		all.Wait()
	}
}

// idle is a watch stream that sends nothing.
func idle(ctx context.Context, _ brainv1connect.BrainServiceWatchServerStream) error {
	<-ctx.Done()
	return ctx.Err()
}

// lease grants a lease and calls each with every later request. It returns nil for a goodbye.
func lease(s brainv1connect.BrainServiceAttachServerStream, granted *brainv1.AttachResponse, each func(*brainv1.AttachRequest) error) error {
	if _, err := s.Receive(); err != nil {
		return err
	}
	if err := s.Send(granted); err != nil {
		return err
	}
	for {
		req, err := s.Receive()
		if err != nil {
			return err
		}
		if req.GetGoodbye() {
			return nil
		}
		if err := each(req); err != nil {
			return err
		}
	}
}

func TestNewAgreesOnAVersion(t *testing.T) {
	b := &fakeBrain{hello: func() (*brainv1.HelloResponse, error) {
		return &brainv1.HelloResponse{Root: &nodev1.NodeRef{Path: "/"}}, nil
	}}
	s, err := New(t.Context(), Config{Brain: clientOf(b), Address: "brain:1"})
	require.NoError(t, err)
	require.Equal(t, "/", s.Root().GetPath())
	b.hello = func() (*brainv1.HelloResponse, error) {
		return nil, connect.NewError(connect.CodeFailedPrecondition, "too old")
	}
	_, err = New(t.Context(), Config{Brain: clientOf(b), Address: "brain:1"})
	require.ErrorContains(t, err, "joining Brain at brain:1")
	require.ErrorContains(t, err, "too old")
	noBrain := brainv1connect.NewBrainServiceClient(connect.NewClient(connectinprocess.New(connect.NewServer())))
	_, err = New(t.Context(), Config{Brain: noBrain, Address: "brain:1"})
	require.Equal(t, connect.CodeFailedPrecondition, connect.CodeOf(err))
	require.ErrorContains(t, err, "a host of nodes answers there, and no Brain")
}

func TestAttachReturnsWhatBrainAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		policy := &brainv1.WebPolicy{Origins: []string{"https://example.com"}}
		s, host := start(t, &fakeBrain{watch: idle, attach: func(_ context.Context, st brainv1connect.BrainServiceAttachServerStream) error {
			return lease(st, &brainv1.AttachResponse{Lease: durationpb.New(time.Second), Web: policy}, func(*brainv1.AttachRequest) error { return nil })
		}}, time.Second)
		defer spawn(s)()
		require.NoError(t, s.Attach(t.Context()))
		require.Len(t, host.policies, 1)
		require.Equal(t, policy.GetOrigins(), host.policies[0].GetOrigins())
	})
	synctest.Test(t, func(t *testing.T) {
		s, _ := start(t, &fakeBrain{watch: idle, attach: func(context.Context, brainv1connect.BrainServiceAttachServerStream) error {
			return connect.NewError(connect.CodePermissionDenied, "not you")
		}}, time.Second)
		defer spawn(s)()
		err := s.Attach(t.Context())
		require.Equal(t, connect.CodePermissionDenied, connect.CodeOf(err))
		require.ErrorContains(t, err, "asking Brain at brain:1 for a lease")
	})
	synctest.Test(t, func(t *testing.T) {
		s, _ := start(t, &fakeBrain{watch: idle, attach: func(ctx context.Context, _ brainv1connect.BrainServiceAttachServerStream) error {
			<-ctx.Done()
			return ctx.Err()
		}}, time.Second)
		defer spawn(s)()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		err := s.Attach(ctx)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.ErrorContains(t, err, "waiting for a lease of Brain at brain:1")
	})
}

// The lease is renewed four times in its duration, whatever Brain answers meanwhile, and each
// answer counts as traffic.
func TestLeaseIsRenewed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var renewals atomic.Int32
		s, _ := start(t, &fakeBrain{watch: idle, attach: func(_ context.Context, st brainv1connect.BrainServiceAttachServerStream) error {
			return lease(st, &brainv1.AttachResponse{Lease: durationpb.New(time.Minute)}, func(*brainv1.AttachRequest) error {
				renewals.Add(1)
				return st.Send(&brainv1.AttachResponse{})
			})
		}}, time.Minute)
		defer spawn(s)()
		require.Zero(t, s.LastTraffic())
		require.NoError(t, s.Attach(t.Context()))
		synctest.Wait()
		granted := time.Now()
		require.Equal(t, granted.UnixNano(), s.LastTraffic())
		<-time.After(10*time.Minute + time.Second)
		require.EqualValues(t, 40, renewals.Load())
		require.Equal(t, granted.Add(10*time.Minute).UnixNano(), s.LastTraffic())
	})
}

func TestGoodbyeIsAcknowledged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _ := start(t, &fakeBrain{watch: idle, attach: func(_ context.Context, st brainv1connect.BrainServiceAttachServerStream) error {
			return lease(st, &brainv1.AttachResponse{Lease: durationpb.New(time.Second)}, func(*brainv1.AttachRequest) error { return nil })
		}}, time.Second)
		defer spawn(s)()
		require.NoError(t, s.Attach(t.Context()))
		require.False(t, s.Acknowledged())
		s.Goodbye(t.Context())
		require.True(t, s.Acknowledged())
	})
}

// A host that ends while Brain is away waits for it no longer than a second, and reports that Brain
// has recorded nothing.
func TestGoodbyeWithoutBrain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _ := start(t, &fakeBrain{watch: idle, attach: func(ctx context.Context, st brainv1connect.BrainServiceAttachServerStream) error {
			if _, err := st.Receive(); err != nil {
				return err
			}
			if err := st.Send(&brainv1.AttachResponse{Lease: durationpb.New(time.Minute)}); err != nil {
				return err
			}
			<-ctx.Done()
			return ctx.Err()
		}}, time.Minute)
		defer spawn(s)()
		require.NoError(t, s.Attach(t.Context()))
		began := time.Now()
		s.Goodbye(t.Context())
		require.LessOrEqual(t, time.Since(began), time.Second)
		require.False(t, s.Acknowledged())
	})
}

// Nodes that Brain has declared dead are reported to the host, but only by the Brain that was
// joined: another one does not know them.
func TestNodesDeclaredDeadAreReported(t *testing.T) {
	for _, id := range []string{"the first", "another"} {
		synctest.Test(t, func(t *testing.T) {
			s, host := start(t, &fakeBrain{
				watch: idle,
				hello: func() (*brainv1.HelloResponse, error) { return &brainv1.HelloResponse{BrainId: id}, nil },
				attach: func(_ context.Context, st brainv1connect.BrainServiceAttachServerStream) error {
					return lease(st, &brainv1.AttachResponse{Lease: durationpb.New(time.Second), Unknown: []string{"mine"}},
						func(*brainv1.AttachRequest) error { return nil })
				},
			}, time.Second)
			defer spawn(s)()
			require.NoError(t, s.Attach(t.Context()))
			if id == "the first" {
				require.Equal(t, []string{"mine"}, host.dead)
			} else {
				require.Empty(t, host.dead)
			}
		})
	}
}

// A stream that is opened anew names all followed nodes, and a running one only what has changed.
func TestWatchNamesNodes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var streams [][]string
		breaks := make(chan struct{})
		s, _ := start(t, &fakeBrain{watch: func(_ context.Context, st brainv1connect.BrainServiceWatchServerStream) error {
			mu.Lock()
			n := len(streams)
			streams = append(streams, nil)
			mu.Unlock()
			go func() {
				for {
					req, err := st.Receive()
					if err != nil {
						return
					}
					mu.Lock()
					for _, nid := range req.GetAdd() {
						streams[n] = append(streams[n], "+"+nid)
					}
					for _, nid := range req.GetRemove() {
						streams[n] = append(streams[n], "-"+nid)
					}
					mu.Unlock()
				}
			}()
			<-breaks
			return io.ErrUnexpectedEOF
		}}, time.Second)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); s.watch(ctx) }()
		s.Follow("a")
		synctest.Wait()
		s.Follow("b")
		synctest.Wait()
		s.Unfollow("a")
		synctest.Wait()
		breaks <- struct{}{}
		<-time.After(time.Second)
		synctest.Wait()
		mu.Lock()
		require.Equal(t, [][]string{{"+a", "+b", "-a"}, {"+b"}}, streams)
		mu.Unlock()
		require.Equal(t, 1, s.Followers("b"))
		cancel()
		close(breaks)
		<-done
	})
}

// A second handle must be sent the record as it stands, though the node was followed already: the
// record that the first one received went with it.
func TestEveryNewHandleAsksForTheRecordAsItStands(t *testing.T) {
	s, _ := start(t, &fakeBrain{}, time.Second)
	s.Follow("n")
	require.Equal(t, []string{"n"}, s.nextRequest().GetAdd())
	s.Follow("n")
	s.Unfollow("n")
	req := s.nextRequest()
	require.Equal(t, []string{"n"}, req.GetAdd())
	require.Empty(t, req.GetRemove())
	s.Unfollow("n")
	require.Equal(t, []string{"n"}, s.nextRequest().GetRemove())
}

func TestAWatchThatWorkedIsOpenedAgainAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var opened, broken []time.Time
		record := &nodev1.NodeRecord{Nid: "n", Path: "n-0", Revision: 1}
		fake := &fakeBrain{watch: func(_ context.Context, stream brainv1connect.BrainServiceWatchServerStream) error {
			mu.Lock()
			opened = append(opened, time.Now())
			mu.Unlock()
			if _, err := stream.Receive(); err != nil {
				return err
			}
			record.Revision++
			if err := stream.Send(&brainv1.WatchResponse{Nodes: []*nodev1.NodeRecord{record}}); err != nil {
				return err
			}
			mu.Lock()
			broken = append(broken, time.Now())
			mu.Unlock()
			return connect.NewError(connect.CodeUnavailable, "the connection broke")
		}}
		s, host := start(t, fake, 10*time.Second)
		s.Follow("n")
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		done := make(chan struct{})
		go func() { defer close(done); s.watch(ctx) }()
		<-done
		require.Greater(t, len(opened), 100)
		for i := range broken[:len(broken)-1] {
			require.LessOrEqual(t, opened[i+1].Sub(broken[i]), 20*time.Millisecond, "break %d", i)
		}
		require.Equal(t, "n-0", host.seen()[0].GetPath())
		require.Len(t, host.seen(), len(broken))
	})
}

func TestAttemptsToReachBrainAreSpacedByAShareOfTheLease(t *testing.T) {
	for lease, most := range map[time.Duration]time.Duration{
		time.Second:      time.Second / 8,
		10 * time.Second: maxBrainPause,
		time.Hour:        maxBrainPause,
		0:                maxBrainPause,
	} {
		synctest.Test(t, func(t *testing.T) {
			var attempts []time.Time
			refuse := func() error {
				attempts = append(attempts, time.Now())
				return connect.NewError(connect.CodeUnavailable, "away")
			}
			fake := &fakeBrain{
				attach: func(context.Context, brainv1connect.BrainServiceAttachServerStream) error { return refuse() },
				watch:  func(context.Context, brainv1connect.BrainServiceWatchServerStream) error { return refuse() },
			}
			for name, run := range map[string]func(context.Context, *Session){
				"lease": func(ctx context.Context, s *Session) {
					first := make(chan error, 1)
					s.attach(ctx, first)
					if err := <-first; err == nil {
						t.Error(errors.New("attached to a Brain that refuses"))
					}
				},
				"watch": func(ctx context.Context, s *Session) { s.watch(ctx) },
			} {
				attempts = nil
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				s, _ := start(t, fake, lease)
				run(ctx, s)
				cancel()
				pauses := make(map[time.Duration]struct{})
				for i := range attempts[1:] {
					pause := attempts[i+1].Sub(attempts[i])
					require.LessOrEqual(t, pause, most, name)
					pauses[pause] = struct{}{}
				}
				require.Greater(t, len(pauses), len(attempts)/2, "%s: no jitter", name)
			}
		})
	}
}
