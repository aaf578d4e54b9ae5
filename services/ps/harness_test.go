package ps

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	nodev1 "github.com/raylink/raylink/gen/raylink/node/v1"
	psv1 "github.com/raylink/raylink/gen/raylink/ps/v1"
	"github.com/raylink/raylink/gen/raylink/ps/v1/psv1raylink"
	"github.com/raylink/raylink/services/ps/store"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// home is the captain's machine.
const home = "home"

// system is a captain with officers on several machines, in this process, connected by local
// calls.
type system struct {
	t      testing.TB
	base   string
	config *psv1.CaptainConfig

	captain  *captain
	handle   *psv1raylink.Captain
	machines map[string]*machine

	mu sync.Mutex // guards nodes
	// nodes are the officers' nodes, by nid; nil for one that is dead.
	nodes map[string]psv1raylink.OfficerNode
}

// machine is an officer's machine.
type machine struct {
	officer *officer
	nid     string
	// node is what is called: the officer, or one that misbehaves.
	node psv1raylink.OfficerNode
	end  context.CancelFunc
	done sync.WaitGroup
}

func newSystem(t testing.TB, config *psv1.CaptainConfig, machines ...string) *system {
	t.Helper()
	s := &system{
		t: t, base: t.TempDir(), config: config, machines: make(map[string]*machine), nodes: make(map[string]psv1raylink.OfficerNode),
	}
	s.start()
	for _, name := range machines {
		s.enlist(name, nil)
	}
	return s
}

// open opens the copy of a machine.
func (s *system) open(name string) *machine {
	s.t.Helper()
	o, err := openCopy(filepath.Join(s.base, name), name, s.config, slog.New(slog.DiscardHandler))
	if errors.Is(err, store.ErrUnsupported) {
		s.t.Skip(err)
	}
	require.NoError(s.t, err)
	o.find = s.find
	m := &machine{officer: o, node: o}
	life, end := context.WithCancel(context.Background())
	m.end = end
	m.done.Go(func() { _ = o.maintain(life) })
	s.machines[name] = m
	s.t.Cleanup(func() { s.stop(name) })
	return m
}

// find returns the handle of a node. One that is dead, or whose machine is, fails its calls.
func (s *system) find(ref *nodev1.NodeRef) (*psv1raylink.Officer, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	node, ok := s.nodes[ref.GetNid()]
	if !ok {
		return nil, fmt.Errorf("no node %s", ref.GetNid())
	}
	return psv1raylink.NewLocalOfficer(node), nil
}

func (s *system) register(m *machine) {
	s.mu.Lock()
	defer s.mu.Unlock()
	m.nid = strconv.Itoa(len(s.nodes))
	s.nodes[m.nid] = m.node
}

// start starts the captain's next incarnation.
func (s *system) start() {
	s.t.Helper()
	m := s.open(home)
	m.officer.home = true
	s.register(m)
	s.captain = newCaptain(s.config, home, m.officer, slog.New(slog.DiscardHandler))
	s.captain.homeRef = &nodev1.NodeRef{Nid: m.nid}
	s.handle = psv1raylink.NewLocalCaptain(s.captain)
	life, end := context.WithCancel(context.Background())
	stop := m.end
	m.end = func() { end(); stop() }
	m.done.Go(func() { _ = s.captain.confirmHome(life) })
}

// kill ends a machine's officer, or the captain, and leaves its files.
func (s *system) kill(name string) {
	m := s.machines[name]
	if m == nil {
		return
	}
	delete(s.machines, name)
	s.mu.Lock()
	delete(s.nodes, m.nid)
	s.mu.Unlock()
	m.end()
	m.done.Wait()
	require.NoError(s.t, m.officer.close(false))
}

// stop ends a machine's officer, and removes its files.
func (s *system) stop(name string) {
	if m := s.machines[name]; m != nil {
		delete(s.machines, name)
		m.end()
		m.done.Wait()
		require.NoError(s.t, m.officer.close(true))
	}
}

// enlist starts the officer of a machine. wrap may return one that misbehaves.
func (s *system) enlist(name string, wrap func(*officer) psv1raylink.OfficerNode) *machine {
	s.t.Helper()
	m := s.open(name)
	if wrap != nil {
		m.node = wrap(m.officer)
	}
	s.register(m)
	s.connect(m)
	s.eventually(func() bool {
		s.captain.mu.Lock()
		defer s.captain.mu.Unlock()
		for _, x := range s.captain.sessions {
			if x.hello.GetOfficer().GetNid() == m.nid {
				return true
			}
		}
		return false
	})
	return m
}

// connect begins the machine's session with the captain.
func (s *system) connect(m *machine) {
	life, end := context.WithCancel(context.Background())
	stop := m.end
	m.end = func() { end(); stop() }
	handle := s.handle
	m.done.Go(func() { _ = m.officer.enlist(life, handle, &nodev1.NodeRef{Nid: m.nid}) })
}

// client returns a client on a machine.
func (s *system) client(name string) *Client {
	s.t.Helper()
	c, err := open(s.t.Context(), s.handle, name, s.find)
	require.NoError(s.t, err)
	s.t.Cleanup(func() { require.NoError(s.t, c.Close()) })
	return c
}

func (s *system) eventually(what func() bool) {
	s.t.Helper()
	require.Eventually(s.t, what, 20*time.Second, time.Millisecond)
}

// awaitEverywhere waits until all machines have a version.
func (s *system) awaitEverywhere(tag string, id uint64) {
	s.t.Helper()
	for name, m := range s.machines {
		require.Eventually(s.t, func() bool { return m.officer.store.Newest(tag).GetId() == id }, 20*time.Second, time.Millisecond,
			"machine %s has version %d", name, m.officer.store.Newest(tag).GetId())
	}
}

// weights returns parameters of a size that differ for each seed.
func weights(seed, size int) []byte {
	b := make([]byte, size)
	x := uint32(seed)*2654435761 + 1
	for i := range b {
		x ^= x << 13
		x ^= x >> 17
		x ^= x << 5
		b[i] = byte(x)
	}
	return b
}

func mustPush(t testing.TB, c *Client, tag string, parameters []byte, opts ...PushOption) uint64 {
	t.Helper()
	v, err := c.Push(t.Context(), tag, parameters, opts...)
	require.NoError(t, err)
	return v.GetId()
}

func requirePulled(t testing.TB, c *Client, tag string, want []byte, id uint64) {
	t.Helper()
	p, err := c.Pull(t.Context(), tag)
	require.NoError(t, err)
	require.Equal(t, id, p.Version().GetId())
	require.Equal(t, store.Checksum(want), p.Version().GetChecksum())
	require.Equal(t, store.Checksum(want), store.Checksum(p.Bytes()))
	require.Len(t, p.Bytes(), len(want))
	require.NoError(t, p.Release())
	require.NoError(t, p.Release())
}
