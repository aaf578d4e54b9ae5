package tunnel_test

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect/v2"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/raylink/raylink/runtime/tunnel"
)

// peerMode is the environment variable that makes this test binary the peer process of a test,
// which stops it by signals: `call ADDRESS` or `serve`.
const peerMode = "TUNNEL_TEST_PEER"

// stoppedKeepalive is the keepalive of the side under test.
const stoppedKeepalive = 100 * time.Millisecond

// heldCalls is the number of open calls.
const heldCalls = 8

// runPeer is the main function of the peer process. The test reads its output.
func runPeer() error {
	address := os.Getenv(peerMode + "_ADDRESS")
	if os.Getenv(peerMode) == "call" {
		return callHeld(address)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Println(l.Addr())
	for {
		nc, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			_, _ = tunnel.Accept(context.Background(), nc, tunnel.Config{Keepalive: -1}, self, admit(handlers{unary: func(in *tunnel.Incoming) {
				if in.Procedure == "/p/Held" {
					fmt.Println("held")
					return // without an answer
				}
				echoUnary(in)
			}}))
		}()
	}
}

// callHeld makes calls and prints the outcome of each.
func callHeld(address string) error {
	nc, err := net.Dial("tcp", address)
	if err != nil {
		return err
	}
	c, err := tunnel.Dial(context.Background(), nc, tunnel.Hello{Client: "client", Host: "server"}, tunnel.Config{Keepalive: stoppedKeepalive})
	if err != nil {
		return err
	}
	var all []<-chan error
	for range heldCalls {
		_, done, err := start(context.Background(), c, "/p/Held", 1)
		if err != nil {
			return err
		}
		all = append(all, done)
	}
	for _, done := range all {
		fmt.Println("call:", <-done)
	}
	return c.Close()
}

// stoppable is the peer process.
type stoppable struct {
	cmd   *exec.Cmd
	lines *bufio.Scanner
}

func startPeer(t *testing.T, mode, address string) *stoppable {
	t.Helper()
	p := &stoppable{cmd: exec.Command(os.Args[0])}
	p.cmd.Env = append(os.Environ(), peerMode+"="+mode, peerMode+"_ADDRESS="+address)
	p.cmd.Stderr = os.Stderr
	out, err := p.cmd.StdoutPipe()
	require.NoError(t, err)
	p.lines = bufio.NewScanner(out)
	require.NoError(t, p.cmd.Start())
	t.Cleanup(func() {
		_ = p.cmd.Process.Kill()
		_ = p.cmd.Wait()
	})
	return p
}

func (p *stoppable) line(t *testing.T) string {
	t.Helper()
	require.True(t, p.lines.Scan(), "the peer has ended")
	return p.lines.Text()
}

func (p *stoppable) signal(t *testing.T, s syscall.Signal) {
	t.Helper()
	require.NoError(t, p.cmd.Process.Signal(s))
}

// TestStoppedCallerKeepsItsConnection stops a calling process with open calls, for longer than its
// keepalive, and continues it: half of its calls are answered while it is stopped, and half when it
// runs again.
func TestStoppedCallerKeepsItsConnection(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	p := startPeer(t, "call", l.Addr().String())
	nc, err := l.Accept()
	require.NoError(t, err)
	require.NoError(t, l.Close())
	calls := make(chan *tunnel.Incoming, heldCalls)
	server, err := tunnel.Accept(t.Context(), nc, tunnel.Config{Keepalive: -1}, self, admit(handlers{unary: func(in *tunnel.Incoming) { calls <- in }}))
	require.NoError(t, err)
	defer func() { _ = server.Close() }() // the peer may have closed it
	var held []*tunnel.Incoming
	for range heldCalls {
		select {
		case in := <-calls:
			held = append(held, in)
		case <-time.After(time.Minute):
			require.FailNow(t, "a call is missing")
		}
	}
	p.signal(t, syscall.SIGSTOP)
	stopped := time.NewTimer(10 * stoppedKeepalive) // the duration of the stop is under test
	for _, in := range held[:heldCalls/2] {
		in.Reply(nil, connect.NewError(connect.CodeAborted, "answered"))
	}
	<-stopped.C
	p.signal(t, syscall.SIGCONT)
	assert.Equal(t, "call: aborted: answered", p.line(t))
	for _, in := range held[heldCalls/2:] {
		in.Reply(nil, connect.NewError(connect.CodeAborted, "answered"))
	}
	for range heldCalls - 1 {
		assert.Equal(t, "call: aborted: answered", p.line(t))
	}
}

// TestStoppedCalleeLosesItsCalls stops a serving process with open calls for longer than its
// caller's keepalive: the calls fail while it is stopped, and when it runs again it serves another
// connection.
func TestStoppedCalleeLosesItsCalls(t *testing.T) {
	t.Parallel()
	p := startPeer(t, "serve", "")
	address := p.line(t)
	dial := func(keepalive time.Duration) *tunnel.Conn {
		nc, err := net.Dial("tcp", address)
		require.NoError(t, err)
		c, err := tunnel.Dial(t.Context(), nc, tunnel.Hello{Client: "client", Host: "server"}, tunnel.Config{Keepalive: keepalive})
		require.NoError(t, err)
		return c
	}
	lost, patient := dial(stoppedKeepalive), dial(time.Minute)
	var all []<-chan error
	for range heldCalls {
		_, done, err := start(t.Context(), lost, "/p/Held", 1)
		require.NoError(t, err)
		all = append(all, done)
		require.Equal(t, "held", p.line(t))
	}
	p.signal(t, syscall.SIGSTOP)
	_, waiting, err := start(t.Context(), patient, "/echo/Echo", 1)
	require.NoError(t, err)
	for _, done := range all {
		select {
		case err := <-done:
			require.Equal(t, connect.CodeUnavailable, connect.CodeOf(err), "%v", err)
			require.ErrorContains(t, err, "no answer")
			require.NotErrorIs(t, err, tunnel.ErrNotRun, "it may have run")
		case <-time.After(time.Minute):
			require.FailNow(t, "the caller still waits for a silent peer")
		}
	}
	p.signal(t, syscall.SIGCONT)
	select {
	case err := <-waiting:
		require.NoError(t, err, "the stop was shorter than this connection's keepalive")
	case <-time.After(time.Minute):
		require.FailNow(t, "the connection does not work after the stop")
	}
	again := dial(time.Minute)
	roundTrip(t, again, 1)
	for _, c := range []*tunnel.Conn{lost, patient, again} {
		_ = c.Close() // one has failed
	}
}
