package nettest

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/raylink/raylink/internal/proctest"
	"github.com/raylink/raylink/runtime/rundir"
)

// silence is how long a connection is watched that must be silent. The way between two machines
// takes less than a thousandth of it.
const silence = 100 * time.Millisecond

// serve starts a server on a machine that sends back what it receives, and returns its address.
func serve(t *testing.T, m *Machine) string {
	t.Helper()
	l, err := m.Listen(t.Context(), "tcp", m.IP.String()+":0")
	require.NoError(t, err)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		echo(l)
	}()
	t.Cleanup(func() {
		require.NoError(t, l.Close())
		<-ended
	})
	return l.Addr().String()
}

// connect connects to an address from a machine.
func connect(t *testing.T, from *Machine, address string) net.Conn {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), proctest.Patience)
	defer cancel()
	conn, err := from.Dial(ctx, "tcp", address)
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// exchange sends a text, and expects it back within the limit.
func exchange(conn net.Conn, text string, limit time.Duration) error {
	if err := conn.SetDeadline(time.Now().Add(limit)); err != nil {
		return err
	}
	if _, err := io.WriteString(conn, text); err != nil {
		return err
	}
	return expect(conn, text, limit)
}

// expect expects a text within the limit.
func expect(conn net.Conn, text string, limit time.Duration) error {
	if err := conn.SetDeadline(time.Now().Add(limit)); err != nil {
		return err
	}
	got := make([]byte, len(text))
	if _, err := io.ReadFull(conn, got); err != nil {
		return err
	}
	if string(got) != text {
		return fmt.Errorf("%q was received instead of %q", got, text)
	}
	return nil
}

// timedOut reports whether there was silence.
func timedOut(err error) bool { return errors.Is(err, os.ErrDeadlineExceeded) }

func TestMachinesReachEachOther(t *testing.T) {
	t.Parallel()
	network := New(t, 3)
	for _, to := range network.Machines {
		address := serve(t, to)
		for _, from := range network.Machines {
			require.NoError(t, exchange(connect(t, from, address), "hello", proctest.Patience), "%s to %s", from.Name, to.Name)
		}
	}
}

func TestLoopbackIsTheMachinesOwn(t *testing.T) {
	t.Parallel()
	network := New(t, 2)
	l, err := network.Machines[0].Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, l.Close()) })
	here, err := network.Machines[0].Dial(t.Context(), "tcp", l.Addr().String())
	require.NoError(t, err)
	require.NoError(t, here.Close())
	_, err = network.Machines[1].Dial(t.Context(), "tcp", l.Addr().String())
	require.ErrorIs(t, err, syscall.ECONNREFUSED, "another machine's loopback is reachable")
	_, err = new(net.Dialer).DialContext(t.Context(), "tcp", l.Addr().String())
	require.ErrorIs(t, err, syscall.ECONNREFUSED, "a machine's loopback is reachable from outside")
}

func TestNamesAreNotDialed(t *testing.T) {
	var m Machine
	_, err := m.Dial(t.Context(), "tcp", "localhost:80")
	require.EqualError(t, err, `nettest: "localhost:80" must be a numeric address and port, since a name would be resolved outside of the machine: `+
		`ParseAddr("localhost"): unable to parse IP`)
	_, err = m.Listen(t.Context(), "tcp", ":80")
	require.ErrorContains(t, err, `nettest: ":80" must be a numeric address and port`)
}

func TestCutLinkIsSilentAndContinuesWhenRestored(t *testing.T) {
	t.Parallel()
	network := New(t, 3)
	m0, m1, m2 := network.Machines[0], network.Machines[1], network.Machines[2]
	conn, other := connect(t, m1, serve(t, m0)), connect(t, m2, serve(t, m0))
	require.NoError(t, exchange(conn, "before", proctest.Patience))
	network.Cut(m1)
	err := exchange(conn, "while it is cut", silence)
	require.True(t, timedOut(err), "a cut link is silent, and this was received: %v", err)
	require.NoError(t, exchange(other, "others", proctest.Patience))
	network.Restore(m1)
	require.NoError(t, expect(conn, "while it is cut", proctest.Patience))
	require.NoError(t, exchange(conn, "after", proctest.Patience))
}

func TestSeparatedMachinesAreReachableForOthers(t *testing.T) {
	t.Parallel()
	network := New(t, 3)
	m0, m1, m2 := network.Machines[0], network.Machines[1], network.Machines[2]
	cut, other, back := connect(t, m1, serve(t, m0)), connect(t, m2, serve(t, m0)), connect(t, m2, serve(t, m1))
	require.NoError(t, exchange(cut, "before", proctest.Patience))
	network.CutBetween(m0, m1)
	err := exchange(cut, "while it is cut", silence)
	require.True(t, timedOut(err), "a cut link is silent, and this was received: %v", err)
	require.NoError(t, exchange(other, "third", proctest.Patience))
	require.NoError(t, exchange(back, "third", proctest.Patience))
	ctx, cancel := context.WithTimeout(t.Context(), silence)
	defer cancel()
	_, err = m1.Dial(ctx, "tcp", other.RemoteAddr().String())
	require.ErrorContains(t, err, "i/o timeout", "a connection to a separated machine times out")
	network.RestoreBetween(m1, m0)
	require.NoError(t, expect(cut, "while it is cut", proctest.Patience))
}

// ping is a datagram's way, from one machine to another, by their numbers.
type ping struct{ From, To int }

// pings sends a datagram from each machine to each other one, and returns which ones arrive.
func pings(sockets []net.PacketConn, round int) map[ping]bool {
	for from, socket := range sockets {
		for to := range sockets {
			if from != to {
				// It may fail in a cut link.
				_, _ = fmt.Fprintf(addressed{socket, sockets[to].LocalAddr()}, "%d %d", round, from)
			}
		}
	}
	arrived := make(map[ping]bool)
	for to, socket := range sockets {
		// The way between two machines takes less than a hundredth of it.
		_ = socket.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
		buffer := make([]byte, 100)
		for missing := len(sockets) - 1; missing > 0; {
			n, _, err := socket.ReadFrom(buffer)
			if err != nil {
				break
			}
			var r, from int
			if _, err := fmt.Sscan(string(buffer[:n]), &r, &from); err == nil && r == round {
				arrived[ping{from, to}] = true
				missing--
			}
		}
	}
	return arrived
}

// addressed writes datagrams to an address.
type addressed struct {
	net.PacketConn

	to net.Addr
}

func (a addressed) Write(p []byte) (int, error) { return a.WriteTo(p, a.to) }

// packetSockets returns a socket for datagrams on each machine.
func packetSockets(t *testing.T, network *Network) []net.PacketConn {
	t.Helper()
	sockets := make([]net.PacketConn, len(network.Machines))
	for i, m := range network.Machines {
		m.Do(func() {
			var err error
			sockets[i], err = net.ListenPacket("udp", m.IP.String()+":0")
			assert.NoError(t, err)
		})
		require.NotNil(t, sockets[i])
		t.Cleanup(func() { require.NoError(t, sockets[i].Close()) })
	}
	return sockets
}

// TestFaultsOfLinksCombine cuts, slows and restores links at random, and checks with datagrams
// which machines reach each other.
func TestFaultsOfLinksCombine(t *testing.T) {
	t.Parallel()
	const machines = 3
	network := New(t, machines)
	sockets := packetSockets(t, network)
	for _, m := range network.Machines {
		// Addresses are resolved again 20 ms after a failure, instead of a second.
		require.NoError(t, batch(m.namespace(), "ntable change name arp_cache dev eth0 retrans 20"))
	}
	round := 0
	rapid.Check(t, func(t *rapid.T) {
		var cut [machines]bool
		separated := make(map[ping]bool) // in both directions
		defer func() {
			for a, m := range network.Machines {
				network.Slow(m, Quality{})
				if cut[a] {
					network.Restore(m)
				}
				if b := (a + 1) % machines; separated[ping{a, b}] {
					network.RestoreBetween(m, network.Machines[b])
				}
			}
		}()
		for range rapid.IntRange(1, 6).Draw(t, "faults") {
			a := rapid.IntRange(0, machines-1).Draw(t, "a")
			b := (a + rapid.IntRange(1, machines-1).Draw(t, "b")) % machines
			m, other := network.Machines[a], network.Machines[b]
			switch fault := rapid.SampledFrom([]string{"cut", "restore", "cut between", "restore between", "slow", "fast"}).Draw(t, "fault"); fault {
			case "cut":
				network.Cut(m)
				cut[a] = true
			case "restore":
				network.Restore(m)
				cut[a] = false
			case "cut between":
				network.CutBetween(m, other)
				separated[ping{a, b}], separated[ping{b, a}] = true, true
			case "restore between":
				network.RestoreBetween(m, other)
				separated[ping{a, b}], separated[ping{b, a}] = false, false
			case "slow":
				network.Slow(m, Quality{Delay: time.Millisecond})
			case "fast":
				network.Slow(m, Quality{})
			}
		}
		want := make(map[ping]bool)
		for a := range machines {
			for b := range machines {
				if p := (ping{a, b}); a != b && !cut[a] && !cut[b] && !separated[p] {
					want[p] = true
				}
			}
		}
		// A machine that was cut may be resolving an address at first, so that what is reached is
		// at last what is wanted. What is separated is never reached.
		for begin := time.Now(); ; {
			round++
			got := pings(sockets, round)
			for p := range got {
				require.True(t, want[p], "m%d reaches m%d, which a fault separates it from", p.From, p.To)
			}
			if len(got) == len(want) {
				break
			}
			require.Less(t, time.Since(begin), proctest.Patience, "reached: %v, and not all of %v", got, want)
		}
	})
}

// transfer returns how long it takes to send octets to a server and get them back.
func transfer(t *testing.T, conn net.Conn, octets int) time.Duration {
	t.Helper()
	begin := time.Now()
	require.NoError(t, conn.SetDeadline(begin.Add(proctest.Patience)))
	sent := make(chan error, 1)
	go func() {
		_, err := conn.Write(make([]byte, octets))
		sent <- err
	}()
	_, err := io.CopyN(io.Discard, conn, int64(octets))
	require.NoError(t, errors.Join(err, <-sent))
	return time.Since(begin)
}

func TestRateOfALinkIsLimited(t *testing.T) {
	t.Parallel()
	network := New(t, 2)
	m0, m1 := network.Machines[0], network.Machines[1]
	address := serve(t, m0)
	const octets = 1 << 20
	// Each time by a new connection: TCP remembers how slow a link was.
	before := transfer(t, connect(t, m1, address), octets)
	// At 8 Mbit/s the transfer takes a second in either direction, which overlap.
	network.Slow(m1, Quality{Rate: 8e6})
	slow := transfer(t, connect(t, m1, address), octets)
	network.Slow(m1, Quality{})
	after := transfer(t, connect(t, m1, address), octets)
	t.Log("before:", before, "slow:", slow, "after:", after)
	assert.Greater(t, slow, time.Second)
	assert.Less(t, slow, 10*time.Second)
	assert.Less(t, max(before, after), slow*2/3)
}

func TestDelayOfALinkIsAddedToTheRoundTrip(t *testing.T) {
	t.Parallel()
	network := New(t, 2)
	conn := connect(t, network.Machines[1], serve(t, network.Machines[0]))
	require.NoError(t, exchange(conn, "before", proctest.Patience))
	const delay = 100 * time.Millisecond
	for _, m := range network.Machines {
		network.Slow(m, Quality{Delay: delay})
	}
	begin := time.Now()
	require.NoError(t, exchange(conn, "slow", proctest.Patience))
	assert.GreaterOrEqual(t, time.Since(begin), 4*delay, "there and back over two links")
	network.Slow(network.Machines[0], Quality{Delay: 1})
	network.Slow(network.Machines[1], Quality{})
	require.NoError(t, exchange(conn, "again", proctest.Patience))
	begin = time.Now()
	require.NoError(t, exchange(conn, "fast", proctest.Patience))
	assert.Less(t, time.Since(begin), 4*delay)
}

func TestLossyLinkLosesFrames(t *testing.T) {
	t.Parallel()
	network := New(t, 2)
	sockets := packetSockets(t, network)
	const datagrams = 200 // for which a socket has room
	buffer := make([]byte, 100)
	count := func(text string) int {
		for range datagrams {
			_, err := sockets[0].WriteTo([]byte(text), sockets[1].LocalAddr())
			require.NoError(t, err)
		}
		received := 0
		for received < datagrams {
			require.NoError(t, sockets[1].SetReadDeadline(time.Now().Add(silence)))
			if _, _, err := sockets[1].ReadFrom(buffer); err != nil {
				break
			}
			received++
		}
		return received
	}
	require.Equal(t, datagrams, count("all"))
	// The addresses are resolved, so that only datagrams are lost.
	network.Slow(network.Machines[1], Quality{Loss: 0.5})
	received := count("half")
	assert.Greater(t, received, datagrams/4)
	assert.Less(t, received, datagrams*3/4)
	network.Slow(network.Machines[1], Quality{Loss: 1})
	assert.Zero(t, count("none"))
}

func TestProcessRunsOnItsMachine(t *testing.T) {
	t.Setenv("RAYLINK_BRAIN", "192.0.2.1:6800")
	t.Setenv("XDG_RUNTIME_DIR", "/run/user/0")
	t.Setenv("HTTP_PROXY", "192.0.2.1:3128")
	network := New(t, 2)
	m0, m1 := network.Machines[0], network.Machines[1]
	address := m0.IP.String() + ":6800"
	p := proctest.StartServing(t, "server", m0.Self(serveAt+"="+address))
	conn := connect(t, m1, address)
	require.NoError(t, exchange(conn, "hello", proctest.Patience))

	// The process is the program's own, from its id on.
	namespace, err := os.Stat(filepath.Join(namespaces, m0.namespace()))
	require.NoError(t, err)
	its, err := os.Stat(fmt.Sprintf("/proc/%d/ns/net", p.PID()))
	require.NoError(t, err)
	assert.True(t, os.SameFile(namespace, its))
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", p.PID()))
	require.NoError(t, err)
	env := strings.Split(string(text), "\x00")
	directory := filepath.Dir(m0.Data)
	for _, variable := range []string{
		rundir.MachineEnv + "=m0", rundir.DataEnv + "=" + directory + "/data", rundir.RuntimeEnv + "=" + directory + "/run",
		"HOME=" + directory + "/home", "TMPDIR=" + directory + "/tmp",
	} {
		assert.Contains(t, env, variable)
	}
	for _, variable := range env {
		name, _, _ := strings.Cut(variable, "=")
		assert.NotContains(t, []string{"RAYLINK_BRAIN", "XDG_RUNTIME_DIR", "HTTP_PROXY"}, name)
	}

	p.Stop()
	err = exchange(conn, "while it is stopped", silence)
	require.True(t, timedOut(err), "%v", err)
	p.Resume()
	require.NoError(t, expect(conn, "while it is stopped", proctest.Patience))
	p.Kill()
	require.Error(t, exchange(conn, "killed", proctest.Patience))
}

func TestOutputOfAProgramOnAMachine(t *testing.T) {
	t.Parallel()
	network := New(t, 1)
	out, err := network.Machines[0].Command("ip", "-json", "-4", "addr", "show", "eth0").Output()
	require.NoError(t, err)
	var devices []struct {
		AddrInfo []struct {
			Local     string `json:"local"`
			PrefixLen int    `json:"prefixlen"`
		} `json:"addr_info"`
	}
	require.NoError(t, json.Unmarshal(out, &devices), "%s", out)
	require.Len(t, devices, 1)
	require.Len(t, devices[0].AddrInfo, 1)
	assert.Equal(t, network.Machines[0].IP.String(), devices[0].AddrInfo[0].Local)
	assert.Equal(t, 24, devices[0].AddrInfo[0].PrefixLen)
}

func TestFunctionThatEndsItsGoroutineIsReported(t *testing.T) {
	t.Parallel()
	network := New(t, 1)
	err := enter(network.Machines[0].namespace(), func() error {
		runtime.Goexit()
		return nil
	})
	require.EqualError(t, err, "nettest: the function has ended its goroutine")
}

// TestNoThreadStaysOnAMachine checks that each thread of this process is in its namespace again, or
// has ended. It is not parallel, so that there are no others.
func TestNoThreadStaysOnAMachine(t *testing.T) {
	network := New(t, 1)
	var calls sync.WaitGroup
	for range 50 {
		calls.Go(func() { network.Machines[0].Do(func() { runtime.Gosched() }) })
	}
	calls.Wait()
	machine, err := os.Stat(filepath.Join(namespaces, network.Machines[0].namespace()))
	require.NoError(t, err)
	stay := func() (n int) {
		threads, err := filepath.Glob("/proc/self/task/*/ns/net")
		require.NoError(t, err)
		for _, thread := range threads {
			if its, err := os.Stat(thread); err == nil && os.SameFile(its, machine) {
				n++
			}
		}
		return n
	}
	for begin := time.Now(); stay() > 0; proctest.Pause(proctest.Poll) {
		require.Less(t, time.Since(begin), 5*time.Second, "%d threads stay on a machine", stay())
	}
}

// left returns the namespaces and directories of an owner.
func left(t *testing.T, o owner) []string {
	t.Helper()
	var found []string
	for _, pattern := range []string{filepath.Join(namespaces, o.String()+"*"), filepath.Join("/tmp", o.String()+"*")} {
		files, err := filepath.Glob(pattern)
		require.NoError(t, err)
		found = append(found, files...)
	}
	return found
}

// inChild is the environment variable of the child of a test.
const inChild = "RAYLINK_TEST_NETTEST_CHILD"

// again makes a command that runs a test in a child.
func again(test string, env ...string) *exec.Cmd {
	cmd := proctest.Command(append(env, inChild+"=1")...)
	cmd.Args = append(cmd.Args, "-test.run=^"+test+"$", "-test.v", "-test.count=1")
	return cmd
}

// TestNothingIsLeft has a child make a network with faults and processes, and end.
func TestNothingIsLeft(t *testing.T) {
	t.Parallel()
	if os.Getenv(inChild) != "" {
		network := New(t, 3)
		network.Slow(network.Machines[0], Quality{Delay: time.Millisecond})
		network.Cut(network.Machines[1])
		network.CutBetween(network.Machines[0], network.Machines[2])
		proctest.StartServing(t, "server", network.Machines[0].Self(serveAt+"="+network.Machines[0].IP.String()+":1"))
		return
	}
	New(t, 1) // skips where there are no namespaces
	before, err := net.Interfaces()
	require.NoError(t, err)
	cmd := again(t.Name())
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.Contains(t, string(out), "--- PASS")
	own := fmt.Sprintf("%s%d-", prefix, cmd.Process.Pid)
	for _, pattern := range []string{filepath.Join(namespaces, own+"*"), filepath.Join("/tmp", own+"*")} {
		files, err := filepath.Glob(pattern)
		require.NoError(t, err)
		assert.Empty(t, files)
	}
	after, err := net.Interfaces()
	require.NoError(t, err)
	assert.Len(t, after, len(before), "the devices of this process's namespace: %v", after)
}

// TestNetworkOfAKilledProcessIsSwept has a child make a network, and be killed.
func TestNetworkOfAKilledProcessIsSwept(t *testing.T) {
	t.Parallel()
	if os.Getenv(inChild) != "" {
		// A process that does not end with its input.
		orphan := New(t, 2).Machines[0].Command("sleep", "1000")
		require.NoError(t, orphan.Start())
		fmt.Println(orphan.Process.Pid)
		proctest.UntilEnd(os.Stdin)
		return
	}
	New(t, 1)
	orphans := make(chan int, 1)
	p := proctest.Start(t, again(t.Name()), func(_ *proctest.Process, out io.Reader) {
		pid := 0
		for lines := bufio.NewScanner(out); pid == 0 && lines.Scan(); {
			pid, _ = strconv.Atoi(lines.Text())
		}
		orphans <- pid
		proctest.UntilEnd(out)
	})
	orphan := <-orphans
	_, err := startOf(orphan)
	require.NoError(t, err)
	start, err := startOf(p.PID())
	require.NoError(t, err)
	child := owner{pid: p.PID(), start: start}
	const files = 2 + 1 + 1 // machines, switch, directory
	require.Len(t, left(t, child), files)
	New(t, 1)
	require.Len(t, left(t, child), files, "the network of a living process was swept")
	p.Kill()
	New(t, 1)
	require.Empty(t, left(t, child), "the network of a dead process was left")
	_, err = startOf(orphan)
	require.Error(t, err, "a process on a dead process's machine was left")
}

func TestNetworkOfAnEarlierProcessWithThisIDIsSwept(t *testing.T) {
	t.Parallel()
	New(t, 1)
	start, err := startOf(os.Getpid())
	require.NoError(t, err)
	earlier := owner{pid: os.Getpid(), start: start - 1}
	// Another process may sweep it at any time.
	require.NoError(t, ip("", "netns", "add", earlier.String()+"1-m0"))
	require.NoError(t, os.Mkdir(filepath.Join("/tmp", earlier.String()+"1"), 0o700))
	New(t, 1)
	require.Empty(t, left(t, earlier))
}

func TestForeignNamespacesAreNotSwept(t *testing.T) {
	t.Parallel()
	New(t, 1)
	name := fmt.Sprintf("rlnet-of-%d", os.Getpid())
	require.NoError(t, ip("", "netns", "add", name))
	t.Cleanup(func() { require.NoError(t, ip("", "netns", "delete", name)) })
	New(t, 1)
	require.FileExists(t, filepath.Join(namespaces, name))
}

func TestTestsWithoutNamespacesAreSkippedOrFail(t *testing.T) {
	if os.Getenv(inChild) != "" {
		New(t, 1)
		return
	}
	empty := "PATH=" + t.TempDir()
	const reason = "there are no machines for this test"
	missing := "iproute2 was not found (`make namespaces` installs Debian's, as root): exec: \"ip\": executable file not found in $PATH"
	if err := supported(); err != nil {
		missing = err.Error()
	}
	out, err := again(t.Name(), empty, requirement+"=").CombinedOutput()
	require.NoError(t, err, "%s", out)
	assert.Contains(t, string(out), "--- SKIP")
	assert.Contains(t, string(out), "skipped: "+reason+": "+missing)
	out, err = again(t.Name(), empty, requirement+"=required").CombinedOutput()
	require.Error(t, err)
	assert.Contains(t, string(out), "--- FAIL")
	assert.Contains(t, string(out), reason+", and this environment requires them (RAYLINK_TEST_NAMESPACES): "+missing)
}

// TestFailedCommandOfIPNamesItsInput checks the reason with which tests are skipped where the
// kernel lacks something.
func TestFailedCommandOfIPNamesItsInput(t *testing.T) {
	t.Parallel()
	network := New(t, 1)
	err := batch(network.bridge(), "link add x type nonsense")
	require.ErrorContains(t, err, "ip -netns "+network.bridge()+" -batch -: exit status")
	require.ErrorContains(t, err, `Unknown device type`)
	require.ErrorContains(t, err, "link add x type nonsense")
	require.True(t, slices.Contains(network.made, network.bridge()))
}
