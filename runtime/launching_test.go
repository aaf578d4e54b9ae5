package runtime

import (
	"context"
	"errors"
	"log/slog"
	goruntime "runtime"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/raylink/raylink/runtime/launch"
)

type launcherFunc func(ctx context.Context, spec launch.Spec) (launch.Process, error)

func (f launcherFunc) Launch(ctx context.Context, spec launch.Spec) (launch.Process, error) {
	return f(ctx, spec)
}

// killable is a process whose other methods are not called.
type killable struct {
	launch.Process

	killed chan struct{}
}

func (p *killable) Kill() error {
	close(p.killed)
	return nil
}

// TestLauncherOfTheUserIsBounded has launchers that fail in every way that user code can.
func TestLauncherOfTheUserIsBounded(t *testing.T) {
	for name, test := range map[string]struct {
		launch launcherFunc
		want   string
	}{
		"an error": {func(context.Context, launch.Spec) (launch.Process, error) { return nil, errors.New("no room") }, "no room"},
		"nothing":  {func(context.Context, launch.Spec) (launch.Process, error) { return nil, nil }, "neither a process nor an error"}, //nolint:nilnil // it is the test
		"a panic":  {func(context.Context, launch.Spec) (launch.Process, error) { panic("boom") }, "Launcher.Launch for lab-0 panicked"},
		"a Goexit": {func(context.Context, launch.Spec) (launch.Process, error) { goruntime.Goexit(); return nil, nil }, "Launcher.Launch for lab-0"}, //nolint:nilnil // never returned
		"no return": {func(ctx context.Context, _ launch.Spec) (launch.Process, error) {
			<-ctx.Done()
			time.Sleep(time.Hour) //nolint:forbidigo // fake time
			return nil, errors.New("too late")
		}, "has not returned 12s after its context ended"},
		"its own ctx": {func(ctx context.Context, _ launch.Spec) (launch.Process, error) { <-ctx.Done(); return nil, ctx.Err() }, "deadline exceeded"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := &userLauncher{inner: test.launch, log: slog.New(slog.DiscardHandler), limit: launcherLimit}
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				defer cancel()
				began := time.Now()
				p, err := l.Launch(ctx, launch.Spec{Name: "lab-0"})
				require.ErrorContains(t, err, test.want)
				assert.Nil(t, p)
				assert.LessOrEqual(t, time.Since(began), time.Second+launcherLimit)
				time.Sleep(2 * time.Hour) //nolint:forbidigo // fake time, for the launcher that sleeps
			})
		})
	}
}

// TestProcessThatIsLaunchedTooLateIsKilled has a launcher return after its caller's context.
func TestProcessThatIsLaunchedTooLateIsKilled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		late := &killable{killed: make(chan struct{})}
		l := &userLauncher{log: slog.New(slog.DiscardHandler), limit: launcherLimit, inner: launcherFunc(
			func(ctx context.Context, _ launch.Spec) (launch.Process, error) {
				<-ctx.Done()
				time.Sleep(time.Minute) //nolint:forbidigo // fake time
				return late, nil
			})}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		_, err := l.Launch(ctx, launch.Spec{Name: "lab-0"})
		require.ErrorIs(t, err, context.Canceled)
		<-late.killed
	})
}
