package machines

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protojson"

	brainv1 "github.com/raylink/raylink/gen/raylink/brain/v1"
	"github.com/raylink/raylink/internal/machine"
	"github.com/raylink/raylink/internal/nettest"
	"github.com/raylink/raylink/internal/proctest"
)

// programs is where raylink and cartpole are; they are built if it is empty.
var programs = flag.String("programs", "", "the `directory` of the programs raylink and cartpole (default: they are built)")

// brainPort is Brain's port on its machine.
const brainPort = ":6800"

// TestCartPoleSolvesOverMachines has a Brain and the driver on one machine, and an agent on each of
// two others: one for the learner and the replay, one for the workers. They only have the program
// raylink: cartpole is sent there.
func TestCartPoleSolvesOverMachines(t *testing.T) {
	ctx, stop := signal.NotifyContext(t.Context(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	d := newDemo(t)
	head, trainer, actor := d.network.Machines[0], d.network.Machines[1], d.network.Machines[2]
	d.startServing(ctx, head, "brain", "--listen", d.brain)
	d.startServing(ctx, trainer, "agent", "--label", "role=trainer")
	d.startServing(ctx, actor, "agent", "--label", "role=worker")

	driver := d.command(head, "cartpole", flag.Args()...)
	trained := d.start(head.Name, driver)
	var most seen
	for over := false; !over; {
		select {
		case <-trained.ended:
			over = true
		case <-ctx.Done():
			require.NoError(t, context.Cause(ctx), "interrupted")
		case <-time.After(time.Second):
		}
		uses, err := d.machines(ctx)
		if err != nil {
			d.say("machines: " + err.Error())
			continue
		}
		most.note(uses)
		d.say("machines: " + line(uses))
	}
	require.NoError(t, trained.err, "CartPole was not solved")
	assert.GreaterOrEqual(t, most.nodes[trainer.Name], uint64(2), "the trainer has learner and replay")
	assert.GreaterOrEqual(t, most.nodes[actor.Name], uint64(2), "the actor has the workers")
	for _, m := range []*nettest.Machine{trainer, actor} {
		sent, err := filepath.Glob(filepath.Join(m.Data, "programs", "*"))
		require.NoError(t, err)
		assert.NotEmpty(t, sent, "the program was not sent to %s", m.Name)
	}
}

// demo is a network of three machines, and what runs there.
type demo struct {
	t       *testing.T
	network *nettest.Network
	// programs is the directory of the programs, and brain the address of Brain.
	programs, brain string

	mu sync.Mutex // guards the output
}

func newDemo(t *testing.T) *demo {
	t.Helper()
	d := &demo{t: t, network: nettest.New(t, 3), programs: *programs}
	d.brain = d.network.Machines[0].IP.String() + brainPort
	if d.programs == "" {
		d.programs = t.TempDir()
		build := exec.CommandContext(t.Context(), "go", "build", "-o", d.programs+"/", "./cmd/raylink", "./examples/cartpole")
		build.Dir = filepath.Join("..", "..", "..", "..")
		out, err := build.CombinedOutput()
		require.NoError(t, err, string(out))
	}
	return d
}

// say prints a line.
func (d *demo) say(text string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	fmt.Fprintln(d.t.Output(), text)
}

// command makes a command that runs a program on a machine.
func (d *demo) command(m *nettest.Machine, program string, args ...string) *exec.Cmd {
	cmd := m.Command(filepath.Join(d.programs, program), args...)
	cmd.Env = append(cmd.Env, "RAYLINK_BRAIN="+d.brain, "RAYLINK_TOKEN=the token of a demo", "RAYLINK_INSECURE=1", "RAYLINK_LISTEN="+m.IP.String()+":0")
	return cmd
}

// running is a process of the demo.
type running struct {
	ended chan struct{} // closed when the process has ended, and its output is read
	err   error         // how it has ended; set before ended is closed
	first chan struct{} // closed after its first line of output
}

// start starts a command, whose output is printed under a name. At the end of the test the process
// is terminated.
func (d *demo) start(name string, cmd *exec.Cmd) *running {
	d.t.Helper()
	r := &running{ended: make(chan struct{}), first: make(chan struct{})}
	out, in := io.Pipe()
	cmd.Stdout, cmd.Stderr = in, in
	require.NoError(d.t, cmd.Start())
	var reading sync.WaitGroup
	reading.Go(func() {
		var once sync.Once
		for lines := bufio.NewScanner(out); lines.Scan(); {
			d.say(name + " | " + lines.Text())
			once.Do(func() { close(r.first) })
		}
	})
	go func() {
		r.err = cmd.Wait()
		_ = in.Close()
		reading.Wait()
		close(r.ended)
	}()
	d.t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM) // it may have ended
		select {
		case <-r.ended:
		case <-time.After(proctest.Patience):
			_ = cmd.Process.Kill()
			<-r.ended
			assert.Fail(d.t, "a process does not end", name)
		}
	})
	return r
}

// startServing starts raylink on a machine, and waits for the line that says that it serves.
func (d *demo) startServing(ctx context.Context, m *nettest.Machine, args ...string) {
	d.t.Helper()
	r := d.start(m.Name, d.command(m, "raylink", args...))
	select {
	case <-r.first:
	case <-r.ended:
		require.NoError(d.t, r.err)
	case <-ctx.Done():
		require.NoError(d.t, context.Cause(ctx), "interrupted")
	case <-time.After(proctest.Patience):
		require.Fail(d.t, "raylink does not serve", strings.Join(args, " "))
	}
}

// machines returns the machines of the system.
func (d *demo) machines(ctx context.Context) ([]*brainv1.MachineUse, error) {
	ctx, cancel := context.WithTimeout(ctx, proctest.Patience)
	defer cancel()
	cmd := d.command(d.network.Machines[0], "raylink", "machines", "-o", "json")
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	defer context.AfterFunc(ctx, func() { _ = cmd.Process.Kill() })()
	if err := cmd.Wait(); err != nil {
		return nil, fmt.Errorf("%w: %s", err, strings.TrimSpace(errs.String()))
	}
	var listed struct {
		Machines []json.RawMessage `json:"machines"`
	}
	if err := json.Unmarshal(out.Bytes(), &listed); err != nil {
		return nil, err
	}
	uses := make([]*brainv1.MachineUse, len(listed.Machines))
	for i, text := range listed.Machines {
		uses[i] = new(brainv1.MachineUse)
		if err := protojson.Unmarshal(text, uses[i]); err != nil {
			return nil, err
		}
	}
	slices.SortFunc(uses, func(a, b *brainv1.MachineUse) int {
		return strings.Compare(a.GetMachine().GetName(), b.GetMachine().GetName())
	})
	return uses, nil
}

// line is the live line: name and labels of each machine, its nodes, and what they have of its
// processors.
func line(uses []*brainv1.MachineUse) string {
	parts := make([]string, len(uses))
	for i, use := range uses {
		m := use.GetMachine()
		name := m.GetName()
		if labels := machine.Labels(m.GetLabels()).String(); labels != "" {
			name += " (" + labels + ")"
		}
		parts[i] = fmt.Sprintf("%s %d nodes, cpu %g/%g", name, use.GetNodes(), cpus(use.GetUsed()), cpus(m.GetResources()))
	}
	return strings.Join(parts, " | ")
}

func cpus(resources map[string]int64) float64 { return float64(resources[machine.CPU]) / machine.Unit }

// seen is the largest number of nodes that each machine had.
type seen struct{ nodes map[string]uint64 }

func (s *seen) note(uses []*brainv1.MachineUse) {
	if s.nodes == nil {
		s.nodes = make(map[string]uint64)
	}
	for _, use := range uses {
		name := use.GetMachine().GetName()
		s.nodes[name] = max(s.nodes[name], use.GetNodes())
	}
}
