package main

import (
	"bytes"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestUplinkIsSharedByAllConnections sends to two machines over a limited uplink: it takes twice as
// long as sending to one.
func TestUplinkIsSharedByAllConnections(t *testing.T) {
	if testing.Short() {
		t.Skip("starts some ten processes")
	}
	const size, bytesPerSecond = 512 << 10, 2e6
	d, err := newDriver(options{rounds: 1, duration: time.Millisecond}, t.Output())
	require.NoError(t, err)
	r := row{name: "uplink", unit: "MB/s", layout: limitedUplinks, job: job{Kind: psSpread, Size: size, Inflight: 2, BytesPerSecond: bytesPerSecond}}
	for system, copies := range map[string]float64{oneHopSystem: 1, tunnelSystem: 2} {
		s, err := d.scene(t.Context(), system, &r)
		require.NoError(t, err)
		took, err := s.push(r.job, true)
		require.NoError(t, err)
		require.NoError(t, s.verify(r.job))
		least := (copies*size - proxyBuffer) / bytesPerSecond
		assert.Greater(t, took.Seconds(), least, system)
	}
	require.NoError(t, d.close())
}

// TestPullReportsTornParameters has a reader read parameters that are half of another version.
func TestPullReportsTornParameters(t *testing.T) {
	parameters := make([]byte, 4096)
	stamp(parameters, 7)
	number, err := stampOf(parameters, len(parameters))
	require.NoError(t, err)
	assert.EqualValues(t, 7, number)
	parameters[0]++
	_, err = stampOf(parameters, len(parameters))
	require.ErrorIs(t, err, errTorn)
	_, err = stampOf(parameters[:100], len(parameters))
	require.ErrorContains(t, err, "100 bytes instead of 4096")
}

// TestMemoryOfAProcess maps a file and measures this process.
func TestMemoryOfAProcess(t *testing.T) {
	const size = 16 << 20
	dir := t.TempDir()
	require.NoError(t, os.Mkdir(filepath.Join(dir, "parameters"), 0o700))
	memory := fileMemory{path: filepath.Join(dir, "parameters", "file")}
	content, err := memory.of(size)
	require.NoError(t, err)
	copy(content, bytes.Repeat([]byte{1}, size))
	all, mapped, err := resident(os.Getpid(), dir)
	require.NoError(t, err)
	assert.EqualValues(t, size, mapped)
	assert.Greater(t, all, mapped)
	files, err := stored(dir)
	require.NoError(t, err)
	assert.EqualValues(t, size, files)
	require.NoError(t, memory.close())
	_, mapped, err = resident(os.Getpid(), dir)
	require.NoError(t, err)
	assert.Zero(t, mapped)
}

// TestListenerIsFoundByItsProcess finds a socket in /proc.
func TestListenerIsFoundByItsProcess(t *testing.T) {
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp4", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close() //nolint:errcheck // a test's
	want := netip.MustParseAddrPort(l.Addr().String())
	got, err := listenerOf(os.Getpid())
	require.NoError(t, err)
	assert.Equal(t, want, got)
	_, err = parseAddrPort("0100007F")
	require.Error(t, err)
}

// TestProcessesOfRayAreEnded ends a process that Ray's driver could have left behind, and no other.
func TestProcessesOfRayAreEnded(t *testing.T) {
	start := func(dir string) *exec.Cmd {
		cmd := exec.CommandContext(t.Context(), "sleep", "60")
		cmd.Env = append(os.Environ(), rayMark+dir)
		require.NoError(t, cmd.Start())
		return cmd
	}
	dir := t.TempDir()
	left, other := start(dir), start(dir+"-other")
	ended := make(chan error, 1)
	go func() { ended <- left.Wait() }()
	require.NoError(t, endProcessesOf(dir))
	require.Error(t, <-ended)
	// A process that has ended has no environment.
	environment, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(other.Process.Pid), "environ"))
	require.NoError(t, err)
	assert.NotEmpty(t, environment)
	require.NoError(t, other.Process.Kill())
	require.Error(t, other.Wait())
}

// TestMissingRayIsReported looks for Ray where there is no Python.
func TestMissingRayIsReported(t *testing.T) {
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	t.Setenv("PATH", t.TempDir())
	d, err := newDriver(options{rounds: 1, duration: time.Millisecond, systems: []string{raySystem}}, t.Output())
	require.NoError(t, err)
	rs, err := selected(rows(), deliverLarge)
	require.NoError(t, err)
	for _, test := range []struct {
		install bool
		reason  string
	}{{false, " is not installed: "}, {true, "python3 with ensurepip and venv was not found"}} {
		d.options.install = test.install
		res, err := d.run(t.Context(), rs)
		require.NoError(t, err)
		require.Empty(t, res.failed)
		lines := res.lines()
		require.Len(t, lines, 1)
		assert.Contains(t, lines[0].Missing, test.reason)
		var out bytes.Buffer
		require.NoError(t, printTable(&out, lines))
		assert.Contains(t, out.String(), test.reason)
		path := filepath.Join(t.TempDir(), "table.md")
		require.NoError(t, summarize(lines, "some machine", path))
		table, err := os.ReadFile(path)
		require.NoError(t, err)
		assert.Contains(t, string(table), "missing")
	}
	require.NoError(t, d.close())
}

// TestAbandonedMemoryIsRemoved finds what a killed run has left, and what another run uses.
func TestAbandonedMemoryIsRemoved(t *testing.T) {
	parent := t.TempDir()
	m, err := newSharedMemoryIn(parent)
	require.NoError(t, err)
	abandoned := filepath.Join(parent, sharedPrefix+"1")
	for _, dir := range []string{abandoned, m.dir} {
		require.NoError(t, os.MkdirAll(filepath.Join(dir, "data"), 0o700))
	}
	removeAbandoned(parent)
	assert.NoDirExists(t, abandoned)
	assert.DirExists(t, filepath.Join(m.dir, "data"))
	require.NoError(t, m.close())
	assert.NoDirExists(t, m.dir)
}
