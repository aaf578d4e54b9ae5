package launch

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	machinev1 "github.com/raylink/raylink/gen/raylink/machine/v1"
)

// way is how a process is launched: on this machine, or by the keeper of another one.
type way struct {
	local Launcher
	// link leads to the keeper; nil on this machine.
	link *link
}

// bothWays runs a test on this machine and as if on another one.
func bothWays(t *testing.T, test func(t *testing.T, w *way)) {
	t.Helper()
	t.Run("here", func(t *testing.T) { test(t, &way{local: Self()}) })
	t.Run("elsewhere", func(t *testing.T) { test(t, elsewhere(t)) })
}

func elsewhere(t *testing.T) *way {
	t.Helper()
	return &way{local: Self(), link: &link{patience: patience}}
}

// tuned changes the options of the launcher.
func (w *way) tuned(change func(*options)) *way {
	w.local = tuned(change)
	if w.link != nil {
		w.link = &link{patience: w.link.patience}
	}
	return w
}

func (w *way) begin(t *testing.T, life string, change ...func(*Spec)) (Process, *transcript) {
	t.Helper()
	return beginWith(t, w.launcher(t), life, change...)
}

func (w *way) launcher(t *testing.T) Launcher {
	t.Helper()
	if w.link == nil {
		return w.local
	}
	if own, ok := w.local.(*self); ok {
		w.link.stallLimit = own.options.stallLimit
	}
	if w.link.keeper == nil {
		w.link.start(t, w.local)
	}
	return w.link
}

var (
	errLost   = errors.New("the connection was lost")
	errKeeper = errors.New("refused by the keeper")
)

// link connects launchers with a keeper, and can be cut.
type link struct {
	patience   time.Duration
	stallLimit time.Duration
	keeper     *Keeper

	mu      sync.Mutex // guards the fields below
	cut     bool
	streams map[*linkStream]struct{}
	opened  int
	// sent counts the messages of the keeper, received those that arrived.
	onSend func()
}

func (l *link) start(t *testing.T, local Launcher) {
	t.Helper()
	l.streams = make(map[*linkStream]struct{})
	l.keeper = NewKeeper(KeeperConfig{
		Launch: func(ctx context.Context, _ *machinev1.LaunchSpec, spec Spec) (Process, error) {
			p, err := local.Launch(ctx, spec)
			if err != nil {
				return nil, errors.Join(errKeeper, err)
			}
			return p, nil
		},
		Unknown:  func(id string) error { return errors.Join(errKeeper, errors.New("there is no launch "+id)) },
		Closed:   func() error { return errors.Join(errKeeper, errors.New("the keeper was closed")) },
		Patience: l.patience, StopLimit: patience, Log: slog.New(slog.DiscardHandler),
	})
	t.Cleanup(func() { require.NoError(t, l.keeper.Close(within(t))) })
}

// Launch implements [Launcher].
func (l *link) Launch(ctx context.Context, spec Spec) (Process, error) {
	r := &Remote{
		stallLimit: l.stallLimit,
		Machine:    "machine-1", Open: l.open, Patience: l.patience,
		IsRefusal: func(err error) bool { return errors.Is(err, errKeeper) },
		Pause: func(ctx context.Context, attempt int) error {
			select {
			case <-time.After(time.Millisecond << min(attempt, 6)):
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		},
	}
	return r.Launch(ctx, new(machinev1.LaunchSpec), spec)
}

// open opens a stream to the keeper.
func (l *link) open(ctx context.Context) (RemoteStream, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.cut {
		return nil, errLost
	}
	s := &linkStream{link: l, requests: make(chan *machinev1.LaunchRequest), responses: make(chan *machinev1.LaunchResponse)}
	s.ctx, s.end = context.WithCancelCause(ctx)
	l.streams[s] = struct{}{}
	l.opened++
	go func() {
		err := l.keeper.Serve(s.ctx, keeperEnd{s})
		if err == nil {
			err = io.EOF
		}
		s.end(err)
		l.mu.Lock()
		delete(l.streams, s)
		l.mu.Unlock()
	}()
	return s, nil
}

// setCut cuts the link, or restores it. Open streams are lost.
func (l *link) setCut(cut bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cut = cut
	for s := range l.streams {
		s.end(errLost)
	}
}

// linkStream is a stream without buffers.
type linkStream struct {
	link      *link
	ctx       context.Context //nolint:containedctx // the life of the stream
	end       context.CancelCauseFunc
	requests  chan *machinev1.LaunchRequest
	responses chan *machinev1.LaunchResponse
}

func (s *linkStream) Send(req *machinev1.LaunchRequest) error {
	select {
	case s.requests <- proto.CloneOf(req):
		return nil
	case <-s.ctx.Done():
		return context.Cause(s.ctx)
	}
}

func (s *linkStream) Receive() (*machinev1.LaunchResponse, error) {
	select {
	case res := <-s.responses:
		return res, nil
	case <-s.ctx.Done():
		return nil, context.Cause(s.ctx)
	}
}

func (s *linkStream) Close() error {
	s.end(io.EOF)
	return nil
}

// keeperEnd is the keeper's end of a stream.
type keeperEnd struct{ stream *linkStream }

func (k keeperEnd) Send(res *machinev1.LaunchResponse) error {
	if f := k.stream.link.onSend; f != nil {
		f()
	}
	select {
	case k.stream.responses <- proto.CloneOf(res):
		return nil
	case <-k.stream.ctx.Done():
		return context.Cause(k.stream.ctx)
	}
}

func (k keeperEnd) Receive() (*machinev1.LaunchRequest, error) {
	select {
	case req := <-k.stream.requests:
		return req, nil
	case <-k.stream.ctx.Done():
		return nil, context.Cause(k.stream.ctx)
	}
}
