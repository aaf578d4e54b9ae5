package launch

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	machinev1 "github.com/raylink/raylink/gen/raylink/machine/v1"
)

// TestLostStreamsAreResumed cuts the link at random while a process prints: each line arrives once,
// in order, and so does how the process ends.
func TestLostStreamsAreResumed(t *testing.T) {
	w := elsewhere(t)
	const lines = 20_000
	var sent atomic.Int64
	w.link.onSend = func() {
		if n := sent.Add(1); n%1999 == 0 && n < lines-1000 {
			w.link.setCut(true)
			time.AfterFunc(time.Millisecond, func() { w.link.setCut(false) })
		}
	}
	p, printed := w.begin(t, "counts:"+strconv.Itoa(lines))
	payload, err := p.Ready(within(t))
	require.NoError(t, err)
	require.Equal(t, "counted", string(payload))
	awaitDone(t, p)
	require.Equal(t, "exited with code 4", p.Exit().String())
	texts := printed.texts(Stdout)
	require.Equal(t, lines, len(texts), "stderr: %.300q", printed.texts(Stderr)) //nolint:testifylint // the lines are many
	for i, text := range texts {
		require.Equal(t, strconv.Itoa(i), text)
	}
	require.Greater(t, w.link.opened, 5)
}

// TestProcessGoesOnWhileItsLauncherIsAway stops it by a request that was made while the link was
// cut.
func TestProcessGoesOnWhileItsLauncherIsAway(t *testing.T) {
	w := elsewhere(t)
	p, _ := w.begin(t, "ok:here")
	_, err := p.Ready(within(t))
	require.NoError(t, err)
	w.link.setCut(true)
	stopped := make(chan error, 1)
	go func() { stopped <- p.Stop(within(t)) }()
	require.True(t, isRunning(p.PID()), "it has ended with the connection")
	w.link.setCut(false)
	require.NoError(t, <-stopped)
	require.True(t, p.Exit().Success(), p.Exit())
}

// TestProcessEndsWithALinkThatIsCutForGood: both sides notice for themselves.
func TestProcessEndsWithALinkThatIsCutForGood(t *testing.T) {
	w := elsewhere(t)
	w.link.patience = 300 * time.Millisecond
	p, _ := w.begin(t, "ok:here")
	_, err := p.Ready(within(t))
	require.NoError(t, err)
	w.link.setCut(true)
	const soon = 20 * time.Second
	require.Eventually(t, func() bool { return p.Exit().String() != "still running" }, soon, time.Millisecond, "the process counts as running")
	require.Equal(t, "lost: machine-1 could not be reached for 300ms (the connection was lost)", p.Exit().String())
	require.Eventually(t, func() bool { return !isRunning(p.PID()) }, soon, time.Millisecond, "the process still runs")

	w.link.setCut(false)
	r := &Remote{Machine: "machine-1", Open: w.link.open}
	stream, err := r.Open(within(t))
	require.NoError(t, err)
	require.NoError(t, stream.Send(&machinev1.LaunchRequest{Id: p.(*remoteProcess).id, Received: 1}))
	for err == nil {
		_, err = stream.Receive() // how it has ended, or that it is not known any more
	}
	require.NoError(t, stream.Close())
}

// TestRefusedLaunches have the keeper's error, and leave nothing.
func TestRefusedLaunches(t *testing.T) {
	w := elsewhere(t)
	launcher := w.launcher(t)
	_, err := launcher.Launch(within(t), Spec{Name: strings.Repeat("x", maxPath+1)})
	require.ErrorIs(t, err, errKeeper)
	require.ErrorContains(t, err, "on machine-1: refused by the keeper\nlaunch: ")
	require.ErrorContains(t, err, "over the limit")
	require.NoError(t, w.link.keeper.Close(within(t)))
	_, err = launcher.Launch(within(t), Spec{Name: "tester-0"})
	require.ErrorContains(t, err, "the keeper was closed")
}

// TestKeepersProcessesEndWithIt closes a keeper: its processes are stopped gracefully, also one
// that does not return from its set-up.
func TestKeepersProcessesEndWithIt(t *testing.T) {
	w := elsewhere(t)
	running, _ := w.begin(t, "ok:here")
	_, err := running.Ready(within(t))
	require.NoError(t, err)
	keeper := w.link.keeper
	starting, err := w.link.Launch(within(t), Spec{Name: "tester-1", Payload: []byte("hangs in set-up")})
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	_ = keeper.Close(ctx) // one of them does not stop
	awaitDone(t, running)
	awaitDone(t, starting)
	require.True(t, running.Exit().Success(), running.Exit())
	require.Equal(t, "killed by signal 9 (killed)", strings.SplitN(starting.Exit().String(), ":", 2)[0])
}

// TestLaunchEndsWithItsContext while the keeper does not answer.
func TestLaunchEndsWithItsContext(t *testing.T) {
	w := elsewhere(t)
	launcher := w.launcher(t)
	w.link.setCut(true)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	_, err := launcher.Launch(ctx, Spec{Name: "tester-0"})
	require.ErrorIs(t, err, context.DeadlineExceeded)
}

// TestExecutablesLaunchAnotherFile launches a copy of this program, with arguments and variables of
// its own, and refuses it where it is another build than expected.
func TestExecutablesLaunchAnotherFile(t *testing.T) {
	source, err := executable()
	require.NoError(t, err)
	text, err := os.ReadFile(source)
	require.NoError(t, err)
	file := filepath.Join(t.TempDir(), "copy")
	require.NoError(t, os.WriteFile(file, text, 0o700))
	program := Executable{Path: file, Args: []string{"copy", "-x"}, Dir: t.TempDir(), Env: []string{"LAUNCH_TEST=yes"}, Build: Build()}
	l := NewExecutables()
	p, err := l.Launch(within(t), program, Spec{Name: "tester-0", Payload: []byte("describes itself")})
	require.NoError(t, err)
	payload, err := p.Ready(within(t))
	require.NoError(t, err)
	require.Equal(t, fmt.Sprintf("args=[\"-x\"] marked=false dir=%s stdin=0,EOF own group=true", program.Dir), string(payload))
	require.NoError(t, p.Stop(within(t)))

	program.Build = "another one"
	p, err = l.Launch(within(t), program, Spec{Name: "tester-0", Payload: []byte("ok")})
	require.NoError(t, err)
	_, err = p.Ready(within(t))
	require.ErrorContains(t, err, "it is another build")
}

// isRunning reports whether there is a process.
func isRunning(pid int) bool { return syscall.Kill(pid, 0) == nil }
