package nettest

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/stretchr/testify/require"

	"github.com/raylink/raylink/runtime/rundir"
)

// Machine is a network namespace with directories.
type Machine struct {
	// Name is also the machine's identity, $RAYLINK_MACHINE.
	Name string
	// IP is its address in the network. It has no other one, but loopback and IPv6's local ones.
	IP netip.Addr
	// Data and Runtime are its directories, $RAYLINK_DATA and $RAYLINK_RUNTIME_DIR. They exist, and
	// belong to the user alone.
	Data, Runtime string

	network *Network
	// port is the name of its device at the switch.
	port string
	// relay passes the frames of a slow link; nil for others.
	relay *relay
}

// Names of the namespace, and of the devices of a slow link.
func (m *Machine) namespace() string { return m.network.name + "-" + m.Name }
func (m *Machine) ownBridge() string { return m.port + "-bridge" }
func (m *Machine) outerTAP() string  { return m.port + "-outer" }
func (m *Machine) innerTAP() string  { return m.port + "-inner" }

// home is the user's home directory on the machine, and scratch that of temporary files.
func (m *Machine) home() string    { return filepath.Join(filepath.Dir(m.Data), "home") }
func (m *Machine) scratch() string { return filepath.Join(filepath.Dir(m.Data), "tmp") }

// Command makes a command that runs a program on the machine. The process is the program's own from
// the start, so that its id is right; it is started by proctest or by itself. It has a group of its
// own, for [proctest.Process.Stop].
//
// Of the test's environment the program has what does not concern the test's own machine: variables
// that begin with RAYLINK_TEST_, but no other ones of RayLink and XDG, and no proxies.
func (m *Machine) Command(name string, args ...string) *exec.Cmd {
	args = append([]string{"--net=" + filepath.Join(namespaces, m.namespace()), "--", name}, args...)
	cmd := exec.Command("nsenter", args...) //nolint:noctx // its owner ends it
	cmd.Env = m.environment()
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	return cmd
}

// Self makes a command that runs the test's binary on the machine, with variables in its
// environment: what proctest.Command makes for this machine.
func (m *Machine) Self(env ...string) *exec.Cmd {
	self, err := os.Executable()
	require.NoError(m.network.t, err)
	cmd := m.Command(self)
	cmd.Env = append(cmd.Env, env...)
	return cmd
}

func (m *Machine) environment() []string {
	foreign := func(variable string) bool {
		name, _, _ := strings.Cut(variable, "=")
		return strings.HasPrefix(name, "RAYLINK_") && !strings.HasPrefix(name, "RAYLINK_TEST_") ||
			strings.HasPrefix(name, "XDG_") || strings.HasSuffix(strings.ToLower(name), "_proxy")
	}
	return append(slices.DeleteFunc(os.Environ(), foreign),
		rundir.MachineEnv+"="+m.Name,
		rundir.DataEnv+"="+m.Data,
		rundir.RuntimeEnv+"="+m.Runtime,
		"HOME="+m.home(),
		"TMPDIR="+m.scratch(),
	)
}

// Do calls a function in the machine's network. Sockets that the function itself makes are there,
// and remain there when it has returned; those of goroutines that it starts are not. It must not
// end its goroutine, as the functions of require do.
func (m *Machine) Do(f func()) {
	m.network.t.Helper()
	require.NoError(m.network.t, enter(m.namespace(), func() error { f(); return nil }))
}

// Dial connects from the machine to a numeric address; names are refused. It can be the DialContext
// of an http.Transport.
func (m *Machine) Dial(ctx context.Context, network, address string) (conn net.Conn, err error) {
	if err := checkNumeric(address); err != nil {
		return nil, err
	}
	err = enter(m.namespace(), func() (err error) {
		conn, err = new(net.Dialer).DialContext(ctx, network, address)
		return err
	})
	return conn, err
}

// Listen listens on the machine at a numeric address. It is safe for concurrent use, as Dial and Do
// are.
func (m *Machine) Listen(ctx context.Context, network, address string) (l net.Listener, err error) {
	if err := checkNumeric(address); err != nil {
		return nil, err
	}
	err = enter(m.namespace(), func() (err error) {
		l, err = new(net.ListenConfig).Listen(ctx, network, address)
		return err
	})
	return l, err
}

// checkNumeric refuses names: package net resolves them, and then connects, in other goroutines,
// which are in the network of this process.
func checkNumeric(address string) error {
	if _, err := netip.ParseAddrPort(address); err != nil {
		return fmt.Errorf("nettest: %q must be a numeric address and port, since a name would be resolved outside of the machine: %w", address, err)
	}
	return nil
}
