package launch

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

// early is the environment variable that makes a launched process misbehave before the handshake.
const early = "LAUNCH_TEST_EARLY"

// program is the environment variable that makes this binary another program than a test.
const program = "LAUNCH_TEST_PROGRAM"

// gates is the environment variable with the directory of the gate at which starting processes
// wait.
const gates = "LAUNCH_TEST_GATES"

// waitAtGate reports by a file that this process has started, and waits until that is removed.
func waitAtGate(dir string) {
	own := filepath.Join(dir, strconv.Itoa(os.Getpid()))
	if err := os.WriteFile(own, nil, 0o600); err != nil {
		say(err.Error())
		os.Exit(1)
	}
	look := time.NewTicker(time.Millisecond)
	for range look.C {
		if _, err := os.Stat(own); err != nil {
			return
		}
	}
}

// patience bounds what the tests wait for. No result depends on speed.
const patience = 60 * time.Second

// TestMain makes this binary its own children. The payload of a launched one selects what it does.
func TestMain(m *testing.M) {
	if _, launched := os.LookupEnv(marker); launched {
		switch os.Getenv(early) {
		case "exit":
			say("no hello from me")
			os.Exit(3)
		case "hang":
			say("thinking")
			select {}
		case "gate":
			waitAtGate(os.Getenv(gates))
		}
	}
	child, err := Inherited()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	if os.Getenv(program) == "is not prepared" {
		_, err := Self().Launch(context.Background(), Spec{Name: "x-0"})
		say(fmt.Sprint("refused: ", err))
		os.Exit(0)
	}
	AllowInTests()
	if child == nil && os.Getenv(program) == "removes its file" {
		if err := launchWithoutFile(); err != nil {
			say(err.Error())
			os.Exit(1)
		}
		os.Exit(0)
	}
	if child != nil {
		mode, arg, _ := strings.Cut(string(child.Payload()), ":")
		live, known := behaviours[mode]
		if !known {
			live = func(*Child, string) error { return fmt.Errorf("no behaviour called %q", mode) }
		}
		if err := live(child, arg); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	// The race detector delays the exit by a second, to report late races.
	if err := os.Setenv("GORACE", strings.TrimSpace(os.Getenv("GORACE")+" atexit_sleep_ms=0")); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	goleak.VerifyTestMain(m)
}

// behaviours are what a launched process can do, by name.
var behaviours = map[string]func(child *Child, arg string) error{
	// Sets itself up with its argument as the address, and stops on request.
	"ok": func(child *Child, arg string) error {
		if err := greet(child); err != nil {
			return err
		}
		say("hello on stdout")
		fmt.Fprintln(os.Stderr, "hello on stderr")
		if err := child.Ready([]byte(arg)); err != nil {
			return err
		}
		await(child)
		return nil
	},
	// Prints numbers, is set up, and exits with code 4.
	"counts": func(child *Child, arg string) error {
		if err := greet(child); err != nil {
			return err
		}
		lines, err := strconv.Atoi(arg)
		for i := range lines {
			say(strconv.Itoa(i))
		}
		if err := errors.Join(err, child.Ready([]byte("counted"))); err != nil {
			return err
		}
		os.Exit(4)
		return nil
	},
	"fails set-up": func(child *Child, arg string) error {
		if err := greet(child); err != nil {
			return err
		}
		say("it won't do")
		return child.Failed([]byte(arg))
	},
	"fails set-up and stays": func(child *Child, arg string) error {
		if err := errors.Join(child.Hello(Build()), child.Failed([]byte(arg))); err != nil {
			return err
		}
		select {}
	},
	"ends when it is given up": func(child *Child, _ string) error {
		if err := greet(child); err != nil {
			return err
		}
		say("setting up")
		<-child.Stop()
		say("gracefully")
		return child.Failed(nil)
	},
	"dies after hello": func(child *Child, _ string) error {
		if err := greet(child); err != nil {
			return err
		}
		fmt.Fprintln(os.Stderr, "oh dear")
		os.Exit(7)
		return nil
	},
	"kills itself": func(child *Child, _ string) error {
		if err := greet(child); err != nil {
			return err
		}
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	},
	"crashes among a crowd": func(child *Child, _ string) error {
		if err := greet(child); err != nil {
			return err
		}
		for range 200 {
			go func() { select {} }()
		}
		panic("the sky is falling")
	},
	"another build": func(child *Child, _ string) error {
		if err := child.Hello("an older one"); err != nil {
			return err
		}
		select {}
	},
	"hangs in set-up": func(child *Child, _ string) error {
		if err := greet(child); err != nil {
			return err
		}
		select {}
	},
	"hangs up": func(child *Child, _ string) error {
		if err := errors.Join(greet(child), child.Close()); err != nil {
			return err
		}
		select {}
	},
	"talks nonsense": func(child *Child, _ string) error {
		if err := greet(child); err != nil {
			return err
		}
		if _, err := child.to.WriteString("GET / HTTP/1.1\r\n\r\n"); err != nil {
			return err
		}
		select {}
	},
	"dies in the middle of a word": func(child *Child, _ string) error {
		if err := greet(child); err != nil {
			return err
		}
		_, err := child.to.WriteString("\x00\x00\x00\xff\x04half")
		return err
	},
	"stops in the middle of a word": func(child *Child, _ string) error {
		if err := greet(child); err != nil {
			return err
		}
		if _, err := child.to.WriteString("\x00\x00\x00\xff\x04half"); err != nil {
			return err
		}
		if err := child.Close(); err != nil {
			return err
		}
		select {}
	},
	"ignores stop": func(child *Child, _ string) error {
		signal.Ignore(syscall.SIGINT, syscall.SIGTERM)
		if err := errors.Join(greet(child), child.Ready(nil)); err != nil {
			return err
		}
		select {}
	},
	// Prints lines until it is stopped.
	"floods": func(child *Child, _ string) error {
		if err := errors.Join(greet(child), child.Ready(nil)); err != nil {
			return err
		}
		for n := 0; ; n++ {
			select {
			case <-child.Stop():
				return nil
			default:
				say(fmt.Sprint("line ", n))
			}
		}
	},
	// Prints its argument without a newline, and ends.
	"prints": func(child *Child, arg string) error {
		if err := errors.Join(greet(child), child.Ready(nil)); err != nil {
			return err
		}
		_, err := os.Stdout.WriteString(arg)
		return err
	},
	// Launches a child of its own, forwards its lines, and reports the child's id.
	"has a child": func(child *Child, arg string) error {
		if err := greet(child); err != nil {
			return err
		}
		p, err := Self().Launch(context.Background(), Spec{
			Name:    "parent-0/leaf-0",
			Payload: []byte(arg),
			Output:  func(line Line) { _ = child.Forward(line) },
		})
		if err != nil {
			return err
		}
		if _, err := p.Ready(context.Background()); err != nil {
			return err
		}
		if err := child.Ready(fmt.Append(nil, p.PID())); err != nil {
			return err
		}
		await(child)
		return p.Stop(context.Background())
	},
	// Writes a file when it is orphaned, although no process reads its output any more.
	"notes its parent's death": func(child *Child, path string) error {
		if err := errors.Join(greet(child), child.Ready(nil)); err != nil {
			return err
		}
		select {
		case <-child.Stop():
			return os.WriteFile(path, []byte("stopped"), 0o600)
		case <-child.Orphaned():
		}
		_, outErr := os.Stdout.WriteString("is a reader there?")
		_, errErr := os.Stderr.WriteString("is a reader there?")
		note := fmt.Appendf(nil, "orphaned, stdout: %v, stderr: %v", errors.Is(outErr, syscall.EPIPE), errors.Is(errErr, syscall.EPIPE))
		return os.WriteFile(path, note, 0o600)
	},
	// Ends while a process that it started still holds its stdout.
	"leaves a stdout holder": func(child *Child, _ string) error {
		if err := greet(child); err != nil {
			return err
		}
		sleeper := exec.Command("sleep", "1000")
		sleeper.Stdout, sleeper.Stderr = os.Stdout, os.Stderr
		if err := sleeper.Start(); err != nil {
			return err
		}
		say("my last words")
		return child.Ready(fmt.Append(nil, sleeper.Process.Pid))
	},
	// Reports what a child of its own has as its fourth file, which is the control channel here.
	"has a curious child": func(child *Child, _ string) error {
		out, err := exec.Command("readlink", "/proc/self/fd/3").CombinedOutput()
		return errors.Join(greet(child), child.Ready(fmt.Appendf(nil, "%s%v", out, err)))
	},
	// Reports as much as it was given.
	"echoes": func(child *Child, arg string) error {
		if err := errors.Join(greet(child), child.Ready([]byte(arg))); err != nil {
			return err
		}
		await(child)
		return nil
	},
	// Reports its arguments and environment.
	"describes itself": func(child *Child, _ string) error {
		if err := greet(child); err != nil {
			return err
		}
		_, marked := os.LookupEnv(marker)
		dir, err := os.Getwd()
		if err != nil {
			return err
		}
		stdin, err := os.Stdin.Read(make([]byte, 1))
		group, groupErr := syscall.Getpgid(0)
		return errors.Join(groupErr, child.Ready(fmt.Appendf(nil, "args=%q marked=%v dir=%s stdin=%d,%v own group=%v",
			os.Args[1:], marked, dir, stdin, err, group == os.Getpid())))
	},
}

// launchWithoutFile launches this program after its file was removed.
func launchWithoutFile() error {
	file, err := os.Executable()
	if err != nil {
		return err
	}
	if err := os.Remove(file); err != nil {
		return err
	}
	p, err := Self().Launch(context.Background(), Spec{Name: "x-0", Payload: []byte("ok:launched without a file")})
	if err != nil {
		return err
	}
	payload, err := p.Ready(context.Background())
	if err != nil {
		return err
	}
	say(string(payload))
	return p.Stop(context.Background())
}

func say(line string) { _, _ = os.Stdout.WriteString(line + "\n") }

func greet(child *Child) error { return child.Hello(Build()) }

// await returns when the child is asked to stop.
func await(child *Child) {
	select {
	case <-child.Stop():
	case <-child.Orphaned():
	}
}

// transcript collects a process's lines.
type transcript struct {
	mu    sync.Mutex
	lines []Line
	inUse bool
	bad   bool
}

func (s *transcript) add(line Line) {
	s.enter(true)
	s.mu.Lock()
	s.lines = append(s.lines, line)
	s.mu.Unlock()
	s.enter(false)
}

// enter detects concurrent calls of add.
func (s *transcript) enter(in bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if in && s.inUse {
		s.bad = true
	}
	s.inUse = in
}

func (s *transcript) texts(stream Stream) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var texts []string
	for _, line := range s.lines {
		if line.Stream == stream {
			texts = append(texts, line.Text)
		}
	}
	return texts
}

// begin launches a child with a behaviour, and ensures that nothing of it remains after the test.
func begin(t *testing.T, life string, change ...func(*Spec)) (Process, *transcript) {
	t.Helper()
	return beginWith(t, Self(), life, change...)
}

func beginWith(t *testing.T, launcher Launcher, life string, change ...func(*Spec)) (Process, *transcript) {
	t.Helper()
	printed := &transcript{}
	spec := Spec{Name: "tester-0", Payload: []byte(life), Output: printed.add}
	for _, f := range change {
		f(&spec)
	}
	before := goleak.IgnoreCurrent()
	p, err := launcher.Launch(within(t), spec)
	require.NoError(t, err)
	t.Cleanup(func() {
		require.NoError(t, p.Kill())
		awaitDone(t, p)
		require.False(t, printed.bad, "lines were delivered by two goroutines at once")
		if l, ok := launcher.(*link); ok { // its keeper may remember the process for a while
			require.NoError(t, l.keeper.Close(within(t)))
		}
		goleak.VerifyNone(t, before)
	})
	return p, printed
}

func within(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

func awaitDone(t *testing.T, p Process) {
	t.Helper()
	select {
	case <-p.Done():
	case <-time.After(patience):
		require.FailNow(t, "the process did not end")
	}
}

// tuned is Self with shorter time limits.
func tuned(change func(*options)) Launcher {
	launcher, ok := Self().(*self)
	if !ok {
		panic("Self is something else now")
	}
	change(&launcher.options)
	return launcher
}
