package launch

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestChildIsSetUpAndStops(t *testing.T) {
	bothWays(t, func(t *testing.T, w *way) {
		p, printed := w.begin(t, "ok:here I am")
		payload, err := p.Ready(within(t))
		require.NoError(t, err)
		assert.Equal(t, "here I am", string(payload))
		assert.NotEqual(t, os.Getpid(), p.PID())
		assert.Equal(t, "still running", p.Exit().String())

		require.NoError(t, p.Stop(within(t)))
		assert.True(t, p.Exit().Success(), p.Exit())
		assert.Equal(t, "exited with code 0", p.Exit().String())
		assert.Equal(t, []string{"hello on stdout"}, printed.texts(Stdout))
		assert.Equal(t, []string{"hello on stderr"}, printed.texts(Stderr))

		again, err := p.Ready(within(t))
		require.NoError(t, err, "the result must not change")
		assert.Equal(t, payload, again)
		require.NoError(t, p.Stop(within(t)), "stopping twice is no error")
		require.NoError(t, p.Kill(), "nor is killing what has ended")
		assert.True(t, p.Exit().Success(), "and doesn't change how it ended")
	})
}

func TestChildRunsThisProgram(t *testing.T) {
	here, err := os.Getwd()
	require.NoError(t, err)
	t.Chdir(t.TempDir()) // which a child does not inherit
	t.Setenv("LAUNCH_TEST", "yes")
	p, _ := begin(t, "describes itself")
	payload, err := p.Ready(within(t))
	require.NoError(t, err)
	assert.Equal(t, fmt.Sprintf("args=[] marked=false dir=%s stdin=0,EOF own group=true", here), string(payload))
}

func TestFailedSetUpArrivesWithItsReason(t *testing.T) {
	bothWays(t, func(t *testing.T, w *way) {
		for _, life := range []string{"fails set-up", "fails set-up and stays"} {
			t.Run(life, func(t *testing.T) {
				if life == "fails set-up and stays" {
					w.tuned(func(o *options) { o.exitGrace = 100 * time.Millisecond })
				}
				p, _ := w.begin(t, life+":\x00\x01 any bytes")
				_, err := p.Ready(within(t))
				var failed *FailedError
				require.ErrorAs(t, err, &failed)
				assert.Equal(t, "\x00\x01 any bytes", string(failed.Payload))
				requireGone(t, p)
				if life == "fails set-up" {
					assert.True(t, failed.Exit.Success(), failed.Exit)
					require.ErrorContains(t, err, "tester-0: set-up failed; it printed last:\n  | it won't do")
				} else {
					assert.Equal(t, syscall.SIGKILL, failed.Exit.Signal)
				}
			})
		}
	})
}

func TestDeathBeforeHelloIsReported(t *testing.T) {
	bothWays(t, func(t *testing.T, w *way) {
		t.Setenv(early, "exit")
		p, _ := w.begin(t, "ok")
		_, err := p.Ready(within(t))
		var died *DiedError
		require.ErrorAs(t, err, &died)
		assert.False(t, died.Greeted)
		assert.Equal(t, 3, died.Exit.Code)
		assert.Equal(t, fmt.Sprintf("launch: tester-0 (process %d) ended before it shook hands: exited with code 3; "+
			"it printed last:\n  | no hello from me", p.PID()), err.Error())
		requireGone(t, p)
	})
}

func TestDeathAfterHelloIsReported(t *testing.T) {
	bothWays(t, func(t *testing.T, w *way) {
		p, _ := w.begin(t, "dies after hello")
		_, err := p.Ready(within(t))
		var died *DiedError
		require.ErrorAs(t, err, &died)
		assert.True(t, died.Greeted)
		assert.Equal(t, 7, died.Exit.Code)
		require.ErrorContains(t, err, "ended during its set-up: exited with code 7; it printed last:\n  | oh dear")
		requireGone(t, p)
	})
}

func TestDeathBySignalIsReported(t *testing.T) {
	bothWays(t, func(t *testing.T, w *way) {
		p, _ := w.begin(t, "kills itself")
		_, err := p.Ready(within(t))
		require.ErrorContains(t, err, "ended during its set-up: killed by signal 9 (killed); it printed nothing")
	})
}

func TestCrashIsReportedWithItsFirstLines(t *testing.T) {
	bothWays(t, func(t *testing.T, w *way) {
		t.Setenv("GOTRACEBACK", "all")
		p, _ := w.begin(t, "crashes among a crowd")
		_, err := p.Ready(within(t))
		require.ErrorContains(t, err, "exited with code 2; it printed last:\n  | panic: the sky is falling\n")
		require.ErrorContains(t, err, "lines more ...\n")
	})
}

func TestSilentChildIsKilled(t *testing.T) {
	bothWays(t, func(t *testing.T, w *way) {
		t.Setenv(early, "hang")
		p, printed := w.tuned(func(o *options) { o.helloTimeout = 2 * time.Second }).begin(t, "ok")
		_, err := p.Ready(within(t))
		var refused *HandshakeError
		require.ErrorAs(t, err, &refused)
		require.ErrorContains(t, err, "it did not say hello within 2s")
		requireGone(t, p)
		assert.Equal(t, "killed by signal 9 (killed): its parent ended it, as "+refused.Reason, p.Exit().String())
		if lines := printed.texts(Stdout); len(lines) > 0 { // it may have been too slow even for that
			require.ErrorContains(t, err, "it printed last:\n  | thinking")
		}
	})
}

func TestAnotherBuildIsRefused(t *testing.T) {
	bothWays(t, func(t *testing.T, w *way) {
		p, _ := w.begin(t, "another build")
		_, err := p.Ready(within(t))
		var refused *HandshakeError
		require.ErrorAs(t, err, &refused)
		assert.Equal(t, "it is another build: this process is "+Build()+", it is an older one", refused.Reason)
		requireGone(t, p)
	})
}

func TestInvalidFramesAreRefused(t *testing.T) {
	bothWays(t, func(t *testing.T, w *way) {
		p, _ := w.begin(t, "talks nonsense")
		_, err := p.Ready(within(t))
		var refused *HandshakeError
		require.ErrorAs(t, err, &refused)
		assert.Equal(t, "got a frame of unknown kind 47", refused.Reason)
		requireGone(t, p)
	})
}

func TestChildThatHangsUpIsKilled(t *testing.T) {
	bothWays(t, func(t *testing.T, w *way) {
		p, _ := w.tuned(func(o *options) { o.exitGrace = 100 * time.Millisecond }).begin(t, "hangs up")
		_, err := p.Ready(within(t))
		var refused *HandshakeError
		require.ErrorAs(t, err, &refused)
		assert.Contains(t, refused.Reason, "closed its control channel")
		requireGone(t, p)
	})
}

func TestDeathInTheMiddleOfAFrameIsADeath(t *testing.T) {
	bothWays(t, func(t *testing.T, w *way) {
		p, _ := w.begin(t, "dies in the middle of a word")
		_, err := p.Ready(within(t))
		var died *DiedError
		require.ErrorAs(t, err, &died)

		p, _ = w.tuned(func(o *options) { o.exitGrace = 100 * time.Millisecond }).begin(t, "stops in the middle of a word")
		_, err = p.Ready(within(t))
		var refused *HandshakeError
		require.ErrorAs(t, err, &refused)
		assert.Equal(t, "the channel ended 4 bytes into a ready of 254", refused.Reason)
	})
}

func TestSetUpEndsWithItsContext(t *testing.T) {
	bothWays(t, func(t *testing.T, w *way) {
		p, _ := w.begin(t, "hangs in set-up")
		ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
		defer cancel()
		_, err := p.Ready(ctx)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		requireGone(t, p)
		assert.Contains(t, p.Exit().String(), "it was not set up in time (context deadline exceeded)")

		_, err = p.Ready(within(t))
		var died *DiedError
		require.ErrorAs(t, err, &died, "a second waiter gets it, too")
	})
}

func TestChildThatIgnoresStopIsKilled(t *testing.T) {
	bothWays(t, func(t *testing.T, w *way) {
		p, _ := w.begin(t, "ignores stop")
		_, err := p.Ready(within(t))
		require.NoError(t, err)
		ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
		defer cancel()
		err = p.Stop(ctx)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.ErrorContains(t, err, "tester-0 did not stop gracefully, and was killed")
		requireGone(t, p)
		assert.Equal(t, syscall.SIGKILL, p.Exit().Signal)
	})
}

func TestLaunchIsRefusedWhenItsContextHasEnded(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_, err := Self().Launch(ctx, Spec{Name: "tester-0"})
	require.ErrorIs(t, err, context.Canceled)
}

func TestHostThatIgnoresItsLaunchDoesNotLaunchItselfRepeatedly(t *testing.T) {
	t.Setenv(marker, "3,4")
	_, err := Self().Launch(within(t), Spec{Name: "tester-0"})
	require.ErrorContains(t, err, "start itself over and over")
}

func TestInheritedRefusesWhatNoLauncherSet(t *testing.T) {
	file, err := os.Create(filepath.Join(t.TempDir(), "no pipe"))
	require.NoError(t, err)
	defer func() { require.NoError(t, file.Close()) }()
	for _, value := range []string{"", "3", "a,b", "-1,-1", "0,1", "99999,99998", fmt.Sprintf("%d,%d", file.Fd(), file.Fd())} {
		t.Setenv(marker, value)
		_, err := Inherited()
		require.ErrorContains(t, err, marker, value)
		_, still := os.LookupEnv(marker)
		require.False(t, still, "it is gone in any case")
	}
}

func TestLogOfAProcess(t *testing.T) {
	bothWays(t, func(t *testing.T, w *way) {
		log := filepath.Join(t.TempDir(), "tester-0.log")
		require.NoError(t, os.WriteFile(log, []byte("an earlier life\n"), 0o600))
		p, _ := w.begin(t, "prints:one\ntwo", func(s *Spec) { s.Log, s.Output = log, nil })
		awaitDone(t, p)
		text, err := os.ReadFile(log)
		require.NoError(t, err)
		const moment = `\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z `
		assert.Regexp(t, "^an earlier life\n"+moment+"one\n"+moment+"two\n$", string(text))

		_, err = w.launcher(t).Launch(within(t), Spec{Name: "tester-0", Log: filepath.Join(log, "not a folder")})
		require.ErrorIs(t, err, syscall.ENOTDIR)
	})
}

func TestLogThatFailsIsGivenUpWithAWarning(t *testing.T) {
	bothWays(t, func(t *testing.T, w *way) {
		if _, err := os.Stat("/dev/full"); err != nil {
			t.Skip("there is no /dev/full here")
		}
		p, printed := w.begin(t, "prints:one\ntwo\n", func(s *Spec) { s.Log = "/dev/full" })
		awaitDone(t, p)
		assert.Equal(t, []string{"one", "two"}, printed.texts(Stdout))
		said := printed.texts(Stderr)
		require.Len(t, said, 1)
		assert.Contains(t, said[0], "no space left on device")
	})
}

func TestLinesArriveWhole(t *testing.T) {
	bothWays(t, func(t *testing.T, w *way) {
		long := strings.Repeat("é", MaxLine) // twice as many bytes, an odd number of them before each cut
		p, printed := w.begin(t, "prints:first\r\n\nx"+long+"\nlast, without an end")
		awaitDone(t, p)
		lines := printed.texts(Stdout)
		require.GreaterOrEqual(t, len(lines), 5)
		assert.Equal(t, "first", lines[0])
		assert.Empty(t, lines[1])
		assert.Equal(t, "last, without an end", lines[len(lines)-1])
		pieces := lines[2 : len(lines)-1]
		assert.Equal(t, "x"+long, strings.Join(pieces, ""))
		for _, piece := range pieces {
			assert.LessOrEqual(t, len(piece), MaxLine)
			assert.NotContains(t, piece, "\uFFFD")
		}
	})
}

func TestFloodBlocksThePrinter(t *testing.T) {
	bothWays(t, func(t *testing.T, w *way) {
		gate, plenty := make(chan struct{}), make(chan struct{})
		seen := 0
		p, _ := w.tuned(func(o *options) { o.stallLimit = patience }).begin(t, "floods", func(s *Spec) {
			s.Output = func(line Line) {
				<-gate
				assert.Equal(t, fmt.Sprintf("line %d", seen), line.Text, "no line is lost")
				if seen++; seen == 50_000 { // more than fits into pipes and buffers
					close(plenty)
				}
			}
		})
		_, err := p.Ready(within(t))
		require.NoError(t, err, "a blocked receiver does not prevent the set-up")
		close(gate)
		select {
		case <-plenty:
		case <-within(t).Done():
			require.FailNow(t, "the flood ebbed")
		}
		require.NoError(t, p.Stop(within(t)))
		assert.Len(t, p.Exit().Lines, tailLines)
	})
}

// TestStalledReceiverDoesNotBlockTheProcess checks that the process continues to print while the
// receiver does not return, and that its log has all lines. When the receiver returns it gets the
// queued lines, then the number of missing ones, then the next.
func TestStalledReceiverDoesNotBlockTheProcess(t *testing.T) {
	bothWays(t, func(t *testing.T, w *way) {
		log := filepath.Join(t.TempDir(), "log")
		gate, stalled, resumed := make(chan struct{}), make(chan struct{}), make(chan struct{})
		var lines []string
		next := make(chan string)
		p, _ := w.tuned(func(o *options) { o.stallLimit = 10 * time.Millisecond }).begin(t, "floods", func(s *Spec) {
			s.Log = log
			s.Output = func(line Line) {
				<-gate
				if len(lines) < 100 {
					if lines = append(lines, line.Text); strings.Contains(line.Text, "are missing here") {
						next <- lines[len(lines)-2]
					}
				}
			}
			var first, second sync.Once // it may stall again
			s.Stalled = func(is bool) {
				if is {
					first.Do(func() { close(stalled) })
					return
				}
				second.Do(func() { close(resumed) })
			}
		})
		_, err := p.Ready(within(t))
		require.NoError(t, err)
		select {
		case <-stalled:
		case <-within(t).Done():
			require.FailNow(t, "no warning reports that the receiver has stalled")
		}
		size := func() int64 {
			info, err := os.Stat(log)
			require.NoError(t, err)
			return info.Size()
		}
		const more = 1 << 20 // than fits into pipes and buffers
		require.Eventually(t, func() bool { return size() > more }, patience, time.Millisecond, "the process is blocked in a print")
		close(gate)
		select {
		case last := <-next:
			assert.Equal(t, fmt.Sprintf("line %d", linesWaiting), last, "the line being delivered and those in the queue")
		case <-within(t).Done():
			require.FailNow(t, "the receiver gets no further lines")
		}
		<-resumed
		require.NoError(t, p.Stop(within(t)))
	})
}

// TestReceiverThatEndsItsGoroutineGetsTheNextLine treats it like one that returns.
func TestReceiverThatEndsItsGoroutineGetsTheNextLine(t *testing.T) {
	bothWays(t, func(t *testing.T, w *way) {
		var got []string
		p, _ := w.begin(t, "prints:one\ntwo\nthree\n", func(s *Spec) {
			s.Output = func(line Line) {
				got = append(got, line.Text)
				runtime.Goexit()
			}
		})
		awaitDone(t, p)
		assert.Equal(t, []string{"one", "two", "three"}, got)
	})
}

func TestStuckReceiverDoesNotHideDeath(t *testing.T) {
	bothWays(t, func(t *testing.T, w *way) {
		gate := make(chan struct{})
		p, _ := w.begin(t, "floods", func(s *Spec) { s.Output = func(Line) { <-gate } })
		defer close(gate)
		_, err := p.Ready(within(t))
		require.NoError(t, err)
		require.NoError(t, p.Kill())
		awaitDone(t, p)
		assert.Equal(t, syscall.SIGKILL, p.Exit().Signal)
	})
}

func TestHolderOfStdoutDoesNotBlockTheParent(t *testing.T) {
	bothWays(t, func(t *testing.T, w *way) {
		p, printed := w.begin(t, "leaves a stdout holder")
		payload, err := p.Ready(within(t))
		require.NoError(t, err)
		sleeper, err := strconv.Atoi(string(payload))
		require.NoError(t, err)
		holder, err := os.FindProcess(sleeper)
		require.NoError(t, err)
		defer func() { require.NoError(t, holder.Kill(), "it still existed") }()
		awaitDone(t, p)
		assert.True(t, p.Exit().Success())
		assert.Equal(t, []string{"my last words"}, printed.texts(Stdout))
	})
}

func TestGrandchildsLinesHaveItsOwnName(t *testing.T) {
	bothWays(t, func(t *testing.T, w *way) {
		p, printed := w.begin(t, "has a child:prints:from below\n")
		_, err := p.Ready(within(t))
		require.NoError(t, err)
		require.NoError(t, p.Stop(within(t)))
		assert.Contains(t, printed.lines, Line{Path: "parent-0/leaf-0", Stream: Stdout, Text: "from below"})
		assert.Empty(t, p.Exit().Lines, "what it printed itself was nothing")
	})
}

func TestPayloadsMayBeLarge(t *testing.T) {
	bothWays(t, func(t *testing.T, w *way) {
		large := strings.Repeat("0123456789abcdef", 1<<20)
		p, _ := w.begin(t, "echoes:"+large)
		payload, err := p.Ready(within(t))
		require.NoError(t, err)
		require.Len(t, payload, len(large))
		require.True(t, large == string(payload), "it is as large, but not the same") //nolint:testifylint // Equal would print both

		_, err = w.launcher(t).Launch(within(t), Spec{Name: "tester-0", Payload: make([]byte, maxPayload+1)})
		require.ErrorContains(t, err, "over the limit")
	})
}

func TestLargePayloadThatIsNeverReadBlocksNothing(t *testing.T) {
	bothWays(t, func(t *testing.T, w *way) {
		t.Setenv(early, "hang")
		p, _ := w.begin(t, "echoes:"+strings.Repeat("x", 1<<20))
		ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
		defer cancel()
		require.ErrorIs(t, p.Stop(ctx), context.DeadlineExceeded)
		requireGone(t, p)
	})
}

func TestManyAtOnce(t *testing.T) {
	bothWays(t, func(t *testing.T, w *way) {
		var all sync.WaitGroup
		for n := range 12 {
			p, _ := w.begin(t, fmt.Sprint("ok:", n))
			all.Go(func() {
				payload, err := p.Ready(within(t))
				if err != nil {
					t.Error(err)
				}
				assert.Equal(t, strconv.Itoa(n), string(payload))
				assert.NoError(t, p.Stop(within(t)))
			})
		}
		all.Wait()
	})
}

func TestControlChannelIsNotInheritedFurther(t *testing.T) {
	if _, err := os.Stat("/proc/self/fd"); err != nil {
		t.Skip("this system doesn't show a process's files")
	}
	p, _ := begin(t, "has a curious child")
	payload, err := p.Ready(within(t))
	require.NoError(t, err)
	assert.Equal(t, "exit status 1", string(payload))
}

func requireGone(t *testing.T, p Process) {
	t.Helper()
	select {
	case <-p.Done():
	default:
		require.Fail(t, "the process should be gone")
	}
	require.ErrorIs(t, syscall.Kill(p.PID(), 0), syscall.ESRCH, "it should have been reaped")
}

// TestStartsAreLimitedToTheProcessors launches many processes at once, whose start-up ends when the
// test permits it. The time limit of each counts from its own start, so none fails though the last
// begins late.
func TestStartsAreLimitedToTheProcessors(t *testing.T) {
	dir := t.TempDir()
	t.Setenv(early, "gate")
	t.Setenv(gates, dir)
	most := runtime.GOMAXPROCS(0)
	launcher := Self()
	var launched atomic.Int32
	results := make(chan error, 3*most)
	for range 3 * most {
		go func() {
			p, err := launcher.Launch(within(t), Spec{Name: "slow-0", Payload: []byte("ok:x")})
			launched.Add(1)
			if err == nil {
				_, err = p.Ready(within(t))
				err = errors.Join(err, p.Stop(within(t)))
			}
			results <- err
		}()
	}
	waiting := func() []os.DirEntry {
		entries, err := os.ReadDir(dir)
		require.NoError(t, err)
		return entries
	}
	for through := range 3 * most {
		want := min(most, 3*most-through)
		require.Eventually(t, func() bool { return len(waiting()) == want }, patience, time.Millisecond)
		require.LessOrEqual(t, int(launched.Load()), through+most, "more are started than may start at a time")
		require.NoError(t, os.Remove(filepath.Join(dir, waiting()[0].Name())))
	}
	for range 3 * most {
		require.NoError(t, <-results)
	}
}

func TestLaunchThatWaitsForASlotEndsWithItsContext(t *testing.T) {
	t.Setenv(early, "gate")
	t.Setenv(gates, t.TempDir())
	launcher := Self()
	var started []Process
	for range runtime.GOMAXPROCS(0) {
		p, err := launcher.Launch(within(t), Spec{Name: "slow-0"})
		require.NoError(t, err)
		started = append(started, p)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	_, err := launcher.Launch(ctx, Spec{Name: "slow-1"})
	require.ErrorIs(t, err, context.DeadlineExceeded)
	for _, p := range started {
		require.NoError(t, p.Kill())
		<-p.Done()
	}
}

// TestCanceledSetUpMayEndGracefully gives a process that has completed the handshake a moment to
// end its set-up.
func TestCanceledSetUpMayEndGracefully(t *testing.T) {
	bothWays(t, func(t *testing.T, w *way) {
		p, printed := w.begin(t, "ends when it is given up")
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			defer cancel()
			// The hello and the later output use different pipes.
			assert.Eventually(t, func() bool {
				started, here := p.(*process)
				return (!here || started.greeted()) && slices.Contains(printed.texts(Stdout), "setting up")
			}, patience, time.Millisecond)
		}()
		_, err := p.Ready(ctx)
		require.ErrorIs(t, err, context.Canceled)
		requireGone(t, p)
		assert.True(t, p.Exit().Success(), "%v", p.Exit())
		assert.Contains(t, printed.texts(Stdout), "gracefully")
	})
}
