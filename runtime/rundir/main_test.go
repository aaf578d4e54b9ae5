package rundir

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

// role is the environment variable that makes this binary another process of a test.
const role = "RUNDIR_TEST_ROLE"

// patience bounds what the tests wait for. It isn't an assertion of speed.
const patience = 60 * time.Second

func TestMain(m *testing.M) {
	if what, ok := os.LookupEnv(role); ok {
		if err := play(what); err != nil {
			say("failed: " + err.Error())
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

// play does what another process of a test is for. It says a line when it has done it, and stays
// until its stdin ends.
func play(what string) error {
	verb, arg, _ := strings.Cut(what, " ")
	switch verb {
	case "host":
		host, err := NewHost(arg)
		if err != nil {
			return err
		}
		say(host.Path())
	case "run":
		run, err := NewRun(arg)
		if err != nil {
			return err
		}
		if err := os.WriteFile(run.Mapped()+"/ring", []byte("samples"), privateFile); err != nil {
			return err
		}
		say(run.Path())
	case "lock":
		lock, err := AcquireLock(context.Background(), arg)
		if err != nil {
			return err
		}
		say("locked " + lock.Path())
	case "churn": // makes, closes and abandons hosts and sweeps, for as long as the test requires
		for i := range 60 {
			host, err := NewHost(arg)
			if err != nil {
				return err
			}
			if err := SweepHosts(arg); err != nil {
				return err
			}
			if !Proves("", host.Path(), host.Nonce()) {
				return errors.New("my own directory is not there")
			}
			if i%2 == 0 {
				err = host.Close()
			} else {
				err = host.lock.release() // as the kernel does when the process dies
			}
			if err != nil {
				return err
			}
		}
		say("churned")
	default:
		return fmt.Errorf("no such role: %q", what)
	}
	_, err := io.Copy(io.Discard, os.Stdin)
	return err
}

func say(line string) { _, _ = os.Stdout.WriteString(line + "\n") }

// another is another process, in its role.
type another struct {
	t    *testing.T
	cmd  *exec.Cmd
	said *bufio.Scanner
	gone bool
}

func begin(t *testing.T, what string) *another {
	t.Helper()
	self, err := os.Executable()
	require.NoError(t, err)
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), role+"="+what)
	_, err = cmd.StdinPipe() // which ends with this process, so that no other survives it
	require.NoError(t, err)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	p := &another{t: t, cmd: cmd, said: bufio.NewScanner(out)}
	t.Cleanup(p.kill)
	return p
}

// line waits for what it says.
func (p *another) line() string {
	p.t.Helper()
	require.True(p.t, p.said.Scan(), "it ended without output")
	return p.said.Text()
}

// kill kills it, as kill -9 does, and reaps it.
func (p *another) kill() {
	p.t.Helper()
	if p.gone {
		return
	}
	p.gone = true
	require.NoError(p.t, p.cmd.Process.Kill())
	_ = p.cmd.Wait() // it was killed
}

// shortDir is a directory for the test whose path is short, as those of sockets need to be.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "rd") //nolint:usetesting // t.TempDir is too long
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	return dir
}

func within(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}
