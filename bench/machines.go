package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"
)

// Systems in rows about machines, beside raylink: the same on the creator's machine, the bytes over
// one TLS connection, and what else no system can spare: they are hashed, written and executed.
const (
	raylinkLocal     = "raylink-local"
	onePassSystem    = "one-pass"
	onePassRunSystem = "one-pass-run"
)

// Rows about machines. Those of Brain are in swarm.go.
const (
	machinesPrefix = "machines/"
	createOne      = "machines/create"
	createGang     = "machines/create/100"
	sendProgram    = "machines/program/64MiB"
)

// benchMachines is how many machines with agents there are.
const benchMachines = 3

func machinesRows() []row {
	return append([]row{
		{name: createOne, unit: "nodes/s", job: job{Kind: machineCreate, Inflight: 1}, systems: []string{"raylink", raylinkLocal}},
		{name: createGang, unit: "s", job: job{Kind: machineGang, Inflight: 100}, systems: []string{"raylink"}},
		{name: sendProgram, unit: "s", job: job{Kind: machineProgram, Size: 64 << 20}, systems: []string{"raylink", onePassSystem, onePassRunSystem}},
	}, swarmRows()...)
}

// ofMachines reports whether a row with this kind of load is about machines.
func (k kind) ofMachines() bool {
	switch k { //nolint:exhaustive // the others are not
	case machineCreate, machineGang, machineProgram:
		return true
	}
	return k.ofSwarm()
}

// machinesStage is the processes for rows about machines: a Brain, three agents, and a creator.
// They are started on first use.
type machinesStage struct {
	dir       string
	brain     *process
	agents    []*process
	creator   *process
	receivers map[string]*process // by the system
	swarm     *swarmStage
}

func (s *machinesStage) close() error {
	var errs []error
	processes := slices.AppendSeq([]*process{s.creator}, maps.Values(s.receivers))
	for _, p := range append(processes, append(s.agents, s.brain)...) {
		if p != nil {
			errs = append(errs, p.stop())
		}
	}
	if s.swarm != nil {
		errs = append(errs, s.swarm.close())
	}
	return errors.Join(append(errs, os.RemoveAll(s.dir))...)
}

func (d *driver) machinesStage() (*machinesStage, error) {
	if d.machines == nil {
		dir, err := os.MkdirTemp(d.dir, "machines-")
		if err != nil {
			return nil, err
		}
		d.machines = &machinesStage{dir: dir, receivers: make(map[string]*process)}
	}
	return d.machines, nil
}

// discardMachines stops all processes for rows about machines after one of them has failed: the
// next measurement starts new ones.
func (d *driver) discardMachines() {
	if d.machines != nil {
		_ = d.machines.close() // the failure was reported already
		d.machines = nil
	}
}

// machineEnv is the environment of processes on a machine: its identity and directories are its
// own.
func (d *driver) machineEnv(s *machinesStage, name string) []string {
	brain := ""
	if s.brain != nil {
		brain = s.brain.address
	}
	dir := filepath.Join(s.dir, name)
	return append(d.env(), "RAYLINK_LOG=error", // without a warning that processes of several machines listen on loopback
		"RAYLINK_BRAIN="+brain, "RAYLINK_MACHINE="+name, "RAYLINK_RUNTIME_DIR="+filepath.Join(dir, "h"), "RAYLINK_DATA="+filepath.Join(dir, "data"))
}

// startMachines starts Brain, the agents and a creator.
func (d *driver) startMachines(ctx context.Context, s *machinesStage) error {
	if s.creator != nil {
		return nil
	}
	var err error
	if s.brain, err = spawn(ctx, d.machineEnv(s, "head"), "brain"); err != nil {
		return err
	}
	for i := range benchMachines {
		p, err := spawn(ctx, d.machineEnv(s, agentMachine(i)), machineAgentRole, strconv.Itoa(i))
		if err != nil {
			return err
		}
		s.agents = append(s.agents, p)
	}
	s.creator, err = spawn(ctx, d.machineEnv(s, "head"), machineCreatorRole, strconv.Itoa(benchMachines))
	return err
}

// agentMachine is the name of an agent's machine.
func agentMachine(i int) string { return "agent" + strconv.Itoa(i) }

// measureMachines measures one system on one row about machines.
func (d *driver) measureMachines(ctx context.Context, r *row, j job, system string, res *results) error {
	s, err := d.machinesStage()
	if err != nil {
		return err
	}
	var f figures
	switch {
	case r.job.Kind.ofSwarm():
		f, err = d.measureSwarm(ctx, s, r, j)
	case system == onePassSystem, system == onePassRunSystem:
		f, err = d.measureOnePass(ctx, s, r, system)
	case r.job.Kind == machineProgram:
		f, err = d.measureProgram(ctx, s, r, j)
	default:
		f, err = d.measureCreations(ctx, s, r, j, system)
	}
	if err == nil {
		res.add(r.name, system, f)
	}
	return err
}

func (d *driver) measureCreations(ctx context.Context, s *machinesStage, r *row, j job, system string) (figures, error) {
	if err := d.startMachines(ctx, s); err != nil {
		return figures{}, err
	}
	if system == raylinkLocal {
		j.Kind = machineCreateLocal
	}
	if _, err := s.creator.ask(request{Op: "prepare", Job: j}); err != nil {
		return figures{}, err
	}
	ran, err := s.creator.ask(request{Op: "run", Job: j})
	if err != nil {
		return figures{}, err
	}
	return machineFigures(r, ran.Outcome), nil
}

// machineFigures are the figures of operations one after the other.
func machineFigures(r *row, o outcome) figures {
	f := figures{value: r.value(o), p50: o.P50 / 1e3, p99: o.P99 / 1e3}
	if r.unit == "s" {
		f.value = o.P50 / 1e9
	}
	return f
}

// program makes a copy of this executable that no machine knows, of at least the row's size.
func (s *machinesStage) program(r *row) (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	content, err := os.ReadFile(self)
	if err != nil {
		return "", err
	}
	content = append(content, make([]byte, max(0, r.job.Size-len(content)-64))...)
	content = fmt.Appendf(content, "%64d", time.Now().UnixNano())
	path := filepath.Join(s.dir, "program")
	// Another file in its place: that of a process that still runs can't be written.
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", err
	}
	return path, os.WriteFile(path, content, 0o700) //nolint:gosec // it is to be run
}

// measureProgram has a program that no agent knows create its first node elsewhere.
func (d *driver) measureProgram(ctx context.Context, s *machinesStage, r *row, j job) (_ figures, err error) {
	if err := d.startMachines(ctx, s); err != nil {
		return figures{}, err
	}
	path, err := s.program(r)
	if err != nil {
		return figures{}, err
	}
	p, err := spawnProgram(ctx, path, d.machineEnv(s, "head"), machineCreatorRole, strconv.Itoa(benchMachines))
	if err != nil {
		return figures{}, err
	}
	defer func() { err = errors.Join(err, p.stop()) }()
	ran, err := p.ask(request{Op: "run", Job: j})
	return machineFigures(r, ran.Outcome), err
}

// measureOnePass sends the same program over one TLS connection.
func (d *driver) measureOnePass(ctx context.Context, s *machinesStage, r *row, system string) (figures, error) {
	if s.receivers[system] == nil {
		words := []string{receiverRole}
		if system == onePassRunSystem {
			words = append(words, s.dir)
		}
		receiver, err := spawn(ctx, d.env(), words...)
		if err != nil {
			return figures{}, err
		}
		s.receivers[system] = receiver
	}
	path, err := s.program(r)
	if err != nil {
		return figures{}, err
	}
	took, err := sendOnePass(ctx, path, s.receivers[system].address)
	return figures{value: took.Seconds(), p50: float64(took.Microseconds()), p99: float64(took.Microseconds())}, err
}
