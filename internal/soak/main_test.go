package soak

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/raylink/raylink"
	"github.com/raylink/raylink/internal/contract/gen/contract/v1/contractv1raylink"
	"github.com/raylink/raylink/join"
	"github.com/raylink/raylink/runtime"
)

var (
	duration = flag.Duration("soak", 5*time.Second, "how long TestSoak keeps the system under stress")
	seed     = flag.Uint64("soak.seed", 0, "the seed of TestSoak's random choices; 0 chooses one")
	brief    = flag.Bool("soak.brief", false, "disturb only the links, and stop at the first failure: enough to detect a mutant")
)

// patience bounds the test's own waits. Reaching it is a failure. A brief run has a
// shorter one.
var patience = time.Minute

const (
	// brainMode makes this binary a Brain: the address to listen on.
	brainMode = "RAYLINK_TEST_SOAK_BRAIN"
	// cradleMode makes this binary the cradle, unless it is Brain: the address of Brain.
	cradleMode = "RAYLINK_TEST_SOAK_CRADLE"
	token      = "soaked"
)

func TestMain(m *testing.M) {
	// The race detector delays the exit of every process by a second.
	if err := os.Setenv("GORACE", "atexit_sleep_ms=0"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	if address := os.Getenv(brainMode); address != "" {
		if err := serveBrain(address); err != nil {
			fmt.Fprintln(os.Stderr, "Brain:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if address := os.Getenv(cradleMode); address != "" {
		if err := cradle(address); err != nil {
			fmt.Fprintln(os.Stderr, "the cradle:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

// serveBrain is the main function of Brain's process, and of those of its own nodes.
func serveBrain(address string) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	return raylink.ServeBrain(ctx, raylink.BrainOptions{
		Listen: address, Token: token,
		Serving: func(address, _, _ string) { fmt.Println("serving", address) },
	})
}

// endCradle makes the cradle close its runtime and exit.
const endCradle = syscall.SIGUSR1

// cradle is the main function of the cradle, a host with a node whose children have processes of
// their own, and of those processes. It ends by endCradle and not by SIGTERM: Init handles that by
// ending the process by the signal, which races with the exit after Close.
func cradle(address string) error {
	ctx, stop := signal.NotifyContext(context.Background(), endCradle)
	defer stop()
	rt, err := join.Init(ctx, append((&world{}).options(), runtime.WithBrain(address))...)
	if err != nil {
		return err
	}
	p, err := contractv1raylink.CreateProbe(ctx, rt, nil, runtime.ParentProcess())
	if err != nil {
		return errors.Join(err, rt.Close())
	}
	fmt.Println("serving", p.Ref().Path())
	<-ctx.Done()
	return rt.Close()
}

// brain is a Brain in a process of its own, which always listens on one address.
type brain struct {
	address string
	cmd     *exec.Cmd
}

// start starts the process, and returns when Brain serves.
func (b *brain) start() error {
	b.cmd = exec.Command(os.Args[0])
	b.cmd.Env = append(os.Environ(), brainMode+"="+b.address)
	if _, err := startServing(b.cmd); err != nil {
		return fmt.Errorf("starting Brain: %w", err)
	}
	return nil
}

// startServing starts a process, and returns what it serves when it does.
func startServing(cmd *exec.Cmd) (string, error) {
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return "", err
	}
	if err := cmd.Start(); err != nil {
		return "", err
	}
	// The caller of Wait reads the pipe to its end: the process's nodes may hold it a little
	// longer.
	line, err := bufio.NewReader(out).ReadString('\n')
	what, serves := strings.CutPrefix(strings.TrimSpace(line), "serving ")
	if err != nil || !serves {
		return "", fmt.Errorf("its output was %q: %w", line, err)
	}
	return what, nil
}

func (b *brain) signal(s os.Signal) error { return b.cmd.Process.Signal(s) }

// kill ends the process by SIGKILL.
func (b *brain) kill() error {
	if err := b.cmd.Process.Kill(); err != nil {
		return err
	}
	_ = b.cmd.Wait() // the error is the signal
	return nil
}

// reserve finds a free port, for a listener that has to be restarted on the same one.
func reserve(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	require.NoError(t, l.Close())
	return l.Addr().String()
}

// ours are the other processes whose environment contains a directory.
func ours(dir string) []string {
	var found []string
	files, _ := filepath.Glob("/proc/[0-9]*/environ")
	for _, file := range files {
		pid := filepath.Base(filepath.Dir(file))
		if pid == strconv.Itoa(os.Getpid()) {
			continue
		}
		env, err := os.ReadFile(file)
		if err == nil && strings.Contains(string(env), dir) {
			title, _ := os.ReadFile(filepath.Join(filepath.Dir(file), "cmdline"))
			found = append(found, pid+" "+strings.ReplaceAll(string(title), "\x00", " "))
		}
	}
	return found
}

// openFiles is the number of the process's file descriptors.
func openFiles(t *testing.T) int {
	t.Helper()
	files, err := os.ReadDir("/proc/self/fd")
	require.NoError(t, err)
	return len(files)
}
