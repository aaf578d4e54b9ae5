package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/raylink/raylink/gen/raylink/ps/v1/psv1raylink"
	"github.com/raylink/raylink/internal/contract"
	contractv1 "github.com/raylink/raylink/internal/contract/gen/contract/v1"
	"github.com/raylink/raylink/internal/contract/gen/contract/v1/contractv1raylink"
	"github.com/raylink/raylink/internal/invariants"
	"github.com/raylink/raylink/join"
	"github.com/raylink/raylink/runtime"
	"github.com/raylink/raylink/services/ps"
)

// patience bounds how long a test waits for an event that must come. No test depends on how soon it
// does.
const patience = 60 * time.Second

// driverMode is the variable that makes this test binary a program that joins a Brain.
const driverMode = "RAYLINK_TEST_JOINS"

// readerMode is the variable that makes such a program host its machine's officer too.
const readerMode = "RAYLINK_TEST_READS"

// meterMode is the variable that makes it run the command of its arguments, and names the file for
// the most memory that the command had, in KiB. Linux counts the maximum of a child from what its
// parent had at most, so the tests' own process, which may have had any amount, can't measure it.
const meterMode = "RAYLINK_TEST_METERS"

// program is the directory of the real `raylink`, built for these tests.
var program string

func TestMain(m *testing.M) { os.Exit(testMain(m)) }

func testMain(m *testing.M) int {
	if os.Getenv(driverMode) != "" {
		if err := drive(context.Background()); err != nil {
			fmt.Fprintln(os.Stderr, "driver:", err)
		}
		return 1
	}
	if path := os.Getenv(meterMode); path != "" {
		exit, err := meter(path, os.Args[1:])
		if err != nil {
			fmt.Fprintln(os.Stderr, "meter:", err)
		}
		return exit
	}
	var err error
	if program, err = os.MkdirTemp("", "raylink"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer func() { _ = os.RemoveAll(program) }()
	build := exec.Command("go", "build", "-o", program, ".")
	if invariants.RaceEnabled {
		build.Args = append(build.Args[:2], "-race", "-o", program, ".")
	}
	build.Stderr = os.Stderr
	if err := build.Run(); err != nil {
		fmt.Fprintln(os.Stderr, "building raylink:", err)
		return 1
	}
	return m.Run()
}

// meter runs a command with the streams of this process, and returns its exit code.
func meter(path string, command []string) (exit int, err error) {
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	var failed *exec.ExitError
	if err := cmd.Run(); err != nil && !errors.As(err, &failed) {
		return 1, err
	}
	usage, ok := cmd.ProcessState.SysUsage().(*syscall.Rusage)
	if !ok {
		return 1, errors.New("the platform doesn't report what a process used")
	}
	return cmd.ProcessState.ExitCode(), os.WriteFile(path, []byte(strconv.FormatInt(usage.Maxrss, 10)), 0o600)
}

// drive joins a Brain, creates the nodes that the tests call, and blocks until it is ended.
func drive(ctx context.Context) error {
	rt, err := join.Init(ctx, contract.Types()...)
	if err != nil {
		return err
	}
	chief, err := contractv1raylink.CreateProbe(ctx, rt, nil, runtime.WithAlias("chief?#%41"),
		runtime.WithAttribute("epoch", 3), runtime.WithAttribute("name", "a \x1b[31mb"), runtime.WithAttribute("key", []byte("abc")))
	if err != nil {
		return err
	}
	if _, err := chief.Spawn(ctx, &contractv1.SpawnRequest{Count: 1}); err != nil {
		return err
	}
	if _, err := contractv1raylink.CreateProbe(ctx, rt, nil); err != nil {
		return err
	}
	if os.Getenv(readerMode) != "" {
		captain, err := psv1raylink.FindCaptain(ctx, rt, runtime.Path("ps-0"))
		if err != nil {
			return err
		}
		if _, err := ps.Open(ctx, captain); err != nil {
			return err
		}
	}
	if count := os.Getenv(replaysMode); count != "" {
		if err := createReplays(ctx, rt, count); err != nil {
			return err
		}
	}
	fmt.Println("ready")
	select {}
}

// environment is this process's without RayLink's variables, and with vars.
func environment(vars ...string) []string {
	var env []string
	for _, entry := range os.Environ() {
		if !strings.HasPrefix(entry, "RAYLINK_") {
			env = append(env, entry)
		}
	}
	env = append(env, "GORACE=atexit_sleep_ms=0", "PATH="+program+":"+os.Getenv("PATH"))
	return append(env, vars...)
}

// process is a program in the background.
type process struct {
	*exec.Cmd

	t      *testing.T
	ended  chan struct{} // closed once it has exited
	stdout *lines
	stderr *lines
}

// lines is a writer that keeps everything and signals each write.
type lines struct {
	mu      sync.Mutex
	text    bytes.Buffer
	changed chan struct{}
}

func newLines() *lines { return &lines{changed: make(chan struct{}, 1)} }

// Write implements io.Writer.
func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.text.Write(p)
	select {
	case l.changed <- struct{}{}:
	default:
	}
	return len(p), nil
}

// String returns everything written so far.
func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// background starts a program. It is terminated when the test ends, if it still runs.
func background(t *testing.T, env []string, name string, args ...string) *process {
	t.Helper()
	p := &process{Cmd: exec.Command(name, args...), t: t, ended: make(chan struct{}), stdout: newLines(), stderr: newLines()}
	p.Env = env
	p.Stdout, p.Stderr = p.stdout, p.stderr
	p.start()
	return p
}

// start starts the program.
func (p *process) start() {
	p.t.Helper()
	p.WaitDelay = time.Second // its own children may hold its output
	require.NoError(p.t, p.Start())
	go func() {
		defer close(p.ended)
		_ = p.Wait() // see ProcessState
	}()
	p.t.Cleanup(func() {
		_ = p.Process.Signal(syscall.SIGTERM)
		select {
		case <-p.ended:
		case <-time.After(patience):
			_ = p.Process.Kill()
			<-p.ended
		}
		if p.t.Failed() {
			p.t.Logf("%s printed:\n%s", strings.Join(p.Args, " "), p.stdout.String()+p.stderr.String())
		}
	})
}

// line waits for the first line on standard output.
func (p *process) line() string {
	p.t.Helper()
	limit := time.After(patience)
	for {
		if line, _, ok := strings.Cut(p.stdout.String(), "\n"); ok {
			return line
		}
		select {
		case <-p.stdout.changed:
		case <-p.ended:
			require.Fail(p.t, "it ended", "%s: %s", strings.Join(p.Args, " "), p.stderr)
		case <-limit:
			require.Fail(p.t, "it prints nothing", strings.Join(p.Args, " "))
		}
	}
}

// end sends a signal and waits until the program has exited.
func (p *process) end(sig syscall.Signal) *os.ProcessState {
	p.t.Helper()
	require.NoError(p.t, p.Process.Signal(sig))
	select {
	case <-p.ended:
	case <-time.After(patience):
		require.Fail(p.t, "it does not end", strings.Join(p.Args, " "))
	}
	return p.ProcessState
}

// brain is a Brain in a process of its own.
type brain struct {
	*process

	address string
	data    string
}

// startBrain starts `raylink brain`. Port 0 in listen stands for a free one.
func startBrain(t *testing.T, data, listen string, args ...string) *brain {
	t.Helper()
	return startBrainOn(t, "", data, listen, args...)
}

// startBrainOn is startBrain on a machine with that id; empty for this one.
func startBrainOn(t *testing.T, machine, data, listen string, args ...string) *brain {
	t.Helper()
	args = append([]string{"brain", "--data", data, "--listen", listen, "-o", "json"}, args...)
	var vars []string
	if machine != "" {
		vars = []string{"RAYLINK_MACHINE=" + machine}
	}
	p := background(t, environment(vars...), filepath.Join(program, "raylink"), args...)
	serving := p.serving()
	require.Equal(t, data, serving.Data)
	require.Equal(t, p.Process.Pid, serving.PID)
	return &brain{process: p, address: serving.Address, data: data}
}

// serving is the line that `raylink brain` prints when it serves.
type serving struct {
	Address string `json:"address"`
	Data    string `json:"data"`
	PID     int    `json:"pid"`
}

// serving waits for the line.
func (p *process) serving() serving {
	p.t.Helper()
	var s serving
	require.NoError(p.t, json.Unmarshal([]byte(p.line()), &s))
	return s
}

// startDriver starts a program that joins a Brain and creates nodes.
func startDriver(t *testing.T, b *brain, vars ...string) *process {
	t.Helper()
	self, err := os.Executable()
	require.NoError(t, err)
	vars = append(vars, driverMode+"=1", "RAYLINK_BRAIN="+b.address, "RAYLINK_DATA="+t.TempDir())
	p := background(t, environment(vars...), self)
	require.Equal(t, "ready", p.line())
	return p
}

// raylink runs a command to its end.
func (b *brain) raylink(t *testing.T, args ...string) (stdout, stderr string, exit int) {
	t.Helper()
	cmd := exec.Command(filepath.Join(program, "raylink"), args...)
	cmd.Env = environment("RAYLINK_BRAIN=" + b.address)
	return finish(t, cmd)
}

func finish(t *testing.T, cmd *exec.Cmd) (stdout, stderr string, exit int) {
	t.Helper()
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var failed *exec.ExitError
	if err != nil && !errors.As(err, &failed) {
		require.NoError(t, err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

func itoa(n int32) string { return strconv.Itoa(int(n)) }

func unmarshalJSON(text []byte, msg proto.Message) error {
	return protojson.UnmarshalOptions{DiscardUnknown: true}.Unmarshal(text, msg)
}

func replaceAddress(text, address string) string { return strings.ReplaceAll(text, address, "ADDRESS") }
