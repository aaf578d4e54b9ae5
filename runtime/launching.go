package runtime

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/raylink/raylink/internal/usercode"
	"github.com/raylink/raylink/runtime/launch"
)

// launcherLimit is how long a user's launcher may take to return after its context has ended. The
// default launcher needs that long if the kernel is slow to end a process.
const launcherLimit = 12 * time.Second

// userLauncher bounds the time spent in a launcher that is user code.
type userLauncher struct {
	inner launch.Launcher
	log   *slog.Logger
	limit time.Duration
}

// Launch implements [launch.Launcher].
func (l *userLauncher) Launch(ctx context.Context, spec launch.Spec) (launch.Process, error) {
	var mu sync.Mutex // guards the variables below
	var launched launch.Process
	left := false
	err := l.await(ctx, "Launcher.Launch", spec.Name, func() error {
		p, err := l.inner.Launch(ctx, spec)
		if err == nil && p == nil {
			return errors.New("it returned neither a process nor an error")
		}
		mu.Lock()
		defer mu.Unlock()
		launched = p
		if left && p != nil {
			l.log.Warn("a launcher returned a process too late: it is killed", slog.String("node", spec.Name))
			return p.Kill()
		}
		return err
	})
	mu.Lock()
	defer mu.Unlock()
	left = true
	if err != nil {
		return nil, err
	}
	return &userProcess{Process: launched, of: l, name: spec.Name}, nil
}

// await calls a method of the launcher, or of one of its processes, within the limit.
func (l *userLauncher) await(ctx context.Context, what, name string, fn func() error) error {
	over, err := usercode.Await(ctx, l.limit, fn)
	switch f, failed := err.(*usercode.UnreturnedError); { //nolint:errorlint // Await's own type
	case failed:
		f.Log(l.log, what, slog.String("node", name))
		return fmt.Errorf("%s for %s %w", what, name, f)
	case !over:
		l.log.Error("a launcher goes on although its context has ended: it is left behind",
			slog.String("node", name), slog.String("method", what))
		return fmt.Errorf("%s for %s has not returned %v after its context ended: %w", what, name, l.limit, causeOf(ctx))
	}
	return err
}

// userProcess bounds the time spent in a process that is user code.
type userProcess struct {
	launch.Process

	of   *userLauncher
	name string
}

// Ready implements [launch.Process].
func (p *userProcess) Ready(ctx context.Context) ([]byte, error) {
	ready := make(chan []byte, 1)
	err := p.of.await(ctx, "Process.Ready", p.name, func() error {
		payload, err := p.Process.Ready(ctx)
		ready <- payload
		return err
	})
	if err != nil {
		return nil, err
	}
	return <-ready, nil
}

// Stop implements [launch.Process].
func (p *userProcess) Stop(ctx context.Context) error {
	return p.of.await(ctx, "Process.Stop", p.name, func() error { return p.Process.Stop(ctx) })
}

// Kill implements [launch.Process].
func (p *userProcess) Kill() error {
	return p.of.await(ended, "Process.Kill", p.name, p.Process.Kill)
}

// ended is a context that has ended: a call with it is bounded by the limit only.
var ended = func() context.Context { //nolint:gochecknoglobals // constant
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}()
