// Package nettest makes the machines of a test: network namespaces of this one, joined by a switch.
// Only tests import it.
//
// A [Machine] has an address, a loopback interface, data and runtime directories and an identity
// ($RAYLINK_MACHINE) of its own. Processes that are started with its commands have these, so that
// nothing goes from one machine to another but by the network. The machines share the file system
// and the table of processes: the functions of proctest apply to their processes as to others.
//
// Links fail as real ones do, silently: what is sent into a cut link is lost, and neither side gets
// a reset. [Network.Cut] pulls a machine's cable, [Network.CutBetween] separates two machines which
// others still reach, and [Network.Slow] limits rate, delays and loses frames.
//
// The namespace of this process is left as it is: the switch, a bridge, has a namespace as well.
// Whatever is made is removed at the end of the test. If the test's process is killed, the next
// [New] on this machine removes it.
//
// Where namespaces can't be made, tests are skipped, with the reason. If the environment variable
// RAYLINK_TEST_NAMESPACES is "required", they fail instead. It takes Linux, root, iproute2
// (`make namespaces` installs it) and nsenter of util-linux; Slow also takes /dev/net/tun.
//
// nettest.go has the network and its links, machine.go what a test does on a machine, relay.go what
// slows a link, and owner.go the names by which what dead processes have left is found.
package nettest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/raylink/raylink/internal/proctest"
)

// MaxMachines is how many machines a network can have: a subnet of 24 bits has addresses for them.
const MaxMachines = 250

// requirement is the environment variable that makes missing namespaces a failure.
const requirement = "RAYLINK_TEST_NAMESPACES"

// namespaces is where iproute2 keeps the names of namespaces: files on which they are mounted.
const namespaces = "/var/run/netns"

// blackHole is a hardware address that no device has: it is administered locally, and the kernel
// draws those of devices at random.
const blackHole = "02:00:00:00:00:01"

// Network is a switch with machines. Its methods are for the goroutine of the test.
type Network struct {
	// Machines are m0, m1 and so on.
	Machines []*Machine

	t testing.TB
	// name is that of the directory; the names of the namespaces begin with it.
	name string
	// made are the names of the namespaces that have been made.
	made []string
}

// New makes a network of n machines, which exists until the end of the test. What networks of dead
// processes have left is removed first.
func New(t testing.TB, n int) *Network {
	t.Helper()
	require.Positive(t, n, "a network needs a machine")
	require.LessOrEqual(t, n, MaxMachines, "a network has addresses for so many machines")
	if err := available(); err != nil {
		refuse(t, err)
	}
	require.NoError(t, sweep())
	prefix, err := ownPrefix()
	require.NoError(t, err)
	dir := proctest.Directory(t, prefix)
	network := &Network{t: t, name: filepath.Base(dir)}
	t.Cleanup(network.remove)
	if err := network.setUp(n, dir); err != nil {
		refuse(t, err)
	}
	return network
}

// refuse skips a test that can't have what it needs, or fails it where the environment requires
// that.
func refuse(t testing.TB, reason error) {
	t.Helper()
	if os.Getenv(requirement) == "required" {
		require.FailNow(t, fmt.Sprintf("there are no machines for this test, and this environment requires them (%s): %v", requirement, reason))
	}
	t.Skipf("skipped: there are no machines for this test: %v", reason)
}

// available returns the reason why namespaces can't be made, as far as it is seen without trying.
func available() error {
	if err := supported(); err != nil {
		return err
	}
	if _, err := exec.LookPath("ip"); err != nil {
		return fmt.Errorf("iproute2 was not found (`make namespaces` installs Debian's, as root): %w", err)
	}
	if _, err := exec.LookPath("nsenter"); err != nil {
		return fmt.Errorf("nsenter of util-linux was not found: %w", err)
	}
	return nil
}

// setUp makes the namespaces and what is in them. dir is the directory for the machines.
func (n *Network) setUp(machines int, dir string) error {
	//nolint:gosec // the choice only avoids addresses that this machine's processes may know
	subnet := netip.AddrFrom4([4]byte{10, byte(1 + rand.IntN(254)), byte(rand.IntN(256)), 0})
	bridge := []string{"link add br0 type bridge", "link set br0 up"}
	address := subnet
	for i := range machines {
		address = address.Next()
		m := &Machine{
			Name:    fmt.Sprintf("m%d", i),
			IP:      address,
			Data:    filepath.Join(dir, fmt.Sprintf("m%d", i), "data"),
			Runtime: filepath.Join(dir, fmt.Sprintf("m%d", i), "run"),
			network: n, port: fmt.Sprintf("p%d", i),
		}
		for _, directory := range []string{m.Data, m.Runtime, m.home(), m.scratch()} {
			if err := os.MkdirAll(directory, 0o700); err != nil {
				return err
			}
		}
		n.Machines = append(n.Machines, m)
		bridge = append(bridge,
			fmt.Sprintf("link add %s type veth peer name eth0 netns %s", m.port, m.namespace()),
			fmt.Sprintf("link set %s master br0 up", m.port))
	}
	for _, m := range n.Machines {
		if err := n.add(m.namespace()); err != nil {
			return err
		}
	}
	if err := n.add(n.bridge()); err != nil {
		return err
	}
	if err := batch(n.bridge(), bridge...); err != nil {
		return err
	}
	for _, m := range n.Machines {
		if err := batch(m.namespace(), "link set lo up", fmt.Sprintf("addr add %s/24 dev eth0", m.IP), "link set eth0 up"); err != nil {
			return err
		}
	}
	return nil
}

// bridge is the name of the switch's namespace.
func (n *Network) bridge() string { return n.name + "-switch" }

// add makes a namespace.
func (n *Network) add(namespace string) error {
	if err := ip("", "netns", "add", namespace); err != nil {
		return err
	}
	n.made = append(n.made, namespace)
	return nil
}

// remove removes the network at the end of the test. The processes of the test have ended.
func (n *Network) remove() {
	for _, m := range n.Machines {
		if m.relay != nil {
			m.relay.close()
		}
	}
	for _, namespace := range n.made {
		assert.NoError(n.t, removeNamespace(namespace))
	}
}

// Cut pulls a machine's cable at the switch: frames from and to it are lost. Its processes see no
// more than on a machine whose cable was pulled: connections are silent, and new ones fail after
// some seconds, when the address was not resolved. Cutting a link that is cut does nothing.
func (n *Network) Cut(m *Machine) {
	n.t.Helper()
	require.NoError(n.t, batch(n.bridge(), "link set "+m.port+" down"))
}

// Restore undoes [Network.Cut]. Connections that have survived continue when TCP transmits again:
// at the latest after as long as the link was cut.
func (n *Network) Restore(m *Machine) {
	n.t.Helper()
	require.NoError(n.t, batch(n.bridge(), "link set "+m.port+" up"))
}

// CutBetween separates two machines, which others still reach: frames from either to the other are
// lost. Neither sees that its cable is cut, and new connections time out.
//
// Each sends to a hardware address that no machine has.
func (n *Network) CutBetween(a, b *Machine) {
	n.t.Helper()
	n.separate(a, b)
	n.separate(b, a)
}

func (n *Network) separate(from, to *Machine) {
	n.t.Helper()
	require.NoError(n.t, batch(from.namespace(), from.misdirect(to)))
}

// RestoreBetween undoes [Network.CutBetween].
func (n *Network) RestoreBetween(a, b *Machine) {
	n.t.Helper()
	n.join(a, b)
	n.join(b, a)
}

func (n *Network) join(from, to *Machine) {
	n.t.Helper()
	// The entry is made if there is none, so that there is always one to remove.
	require.NoError(n.t, batch(from.namespace(), from.misdirect(to), fmt.Sprintf("neigh del %s dev eth0", to.IP)))
}

// misdirect is the command that makes a machine send what is for another one to no machine.
func (m *Machine) misdirect(to *Machine) string {
	return fmt.Sprintf("neigh replace %s lladdr %s dev eth0 nud permanent", to.IP, blackHole)
}

// Slow gives a machine's link another quality, in both directions. The zero quality restores the
// link; frames that are delayed at that moment are lost. A slow link that is cut remains slow when
// it is restored.
//
// It skips the test where there are no TAP devices.
func (n *Network) Slow(m *Machine, q Quality) {
	n.t.Helper()
	require.NoError(n.t, q.check())
	switch {
	case q == Quality{} && m.relay == nil:
	case q == Quality{}:
		n.speedUp(m)
	case m.relay != nil:
		m.relay.quality.Store(&q)
	default:
		n.slowDown(m, q)
	}
}

// slowDown moves a machine's port to a bridge of its own, between which and the switch a relay
// passes frames.
func (n *Network) slowDown(m *Machine, q Quality) {
	n.t.Helper()
	var outer, inner *os.File
	err := enter(n.bridge(), func() (err error) {
		if outer, err = openTAP(m.outerTAP()); err != nil {
			return err
		}
		if inner, err = openTAP(m.innerTAP()); err != nil {
			_ = outer.Close()
		}
		return err
	})
	if err != nil {
		refuse(n.t, err)
	}
	m.relay = newRelay(outer, inner, q)
	require.NoError(n.t, batch(n.bridge(),
		fmt.Sprintf("link add %s type bridge", m.ownBridge()),
		fmt.Sprintf("link set %s up", m.ownBridge()),
		fmt.Sprintf("link set %s master %s up", m.innerTAP(), m.ownBridge()),
		fmt.Sprintf("link set %s master %s", m.port, m.ownBridge()),
		fmt.Sprintf("link set %s master br0 up", m.outerTAP())))
}

// speedUp undoes slowDown. The TAP devices vanish when they are closed.
func (n *Network) speedUp(m *Machine) {
	n.t.Helper()
	m.relay.close()
	m.relay = nil
	require.NoError(n.t, batch(n.bridge(),
		fmt.Sprintf("link set %s master br0", m.port),
		"link del "+m.ownBridge()))
}

// batch executes commands of ip in a namespace.
func batch(namespace string, commands ...string) error {
	return ip(strings.Join(commands, "\n")+"\n", "-netns", namespace, "-batch", "-")
}

// ip runs iproute2.
func ip(input string, args ...string) error {
	ctx, cancel := context.WithTimeout(context.Background(), proctest.Patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, "ip", args...)
	cmd.Stdin = strings.NewReader(input)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("ip %s: %w: %s\n%s", strings.Join(args, " "), err, strings.TrimSpace(string(out)), input)
	}
	return nil
}

// removeNamespace removes a namespace, which another process may remove as well.
func removeNamespace(name string) error {
	err := ip("", "netns", "delete", name)
	if _, gone := os.Stat(filepath.Join(namespaces, name)); errors.Is(gone, os.ErrNotExist) {
		return nil
	}
	return err
}
