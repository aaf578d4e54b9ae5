package main

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Rows about a Brain with 100,000 nodes on 1,000 machines, whose hosts are simulated by one
// process.
const (
	swarmPrefix   = "brain/"
	swarmRegister = "brain/nodes=100000/machines=1000/register"
	swarmMemory   = "brain/nodes=100000/machines=1000/memory"
	swarmLookup   = "brain/nodes=100000/machines=1000/lookup"
	swarmRecover  = "brain/nodes=100000/machines=1000/recover"
)

// Operations of a process with simulated hosts. Each request has the row's job.
const (
	opAttach   = "attach"   // connects all hosts, and waits for their leases
	opRegister = "register" // registers all nodes
	opRun      = "running"  // says that all nodes run
	opLookup   = "lookup"   // looks up nodes for the job's duration
	opReturn   = "return"   // as opAttach, with the nodes, to a Brain that was started again
)

// swarmRows have the number of nodes in Inflight, and that of machines in Size.
func swarmRows() []row {
	of := func(name, unit string, k kind) row {
		return row{name: name, unit: unit, once: true, systems: []string{"raylink"}, job: job{Kind: k, Inflight: 100_000, Size: 1000}}
	}
	return []row{
		of(swarmRegister, "nodes/s", registered), of(swarmMemory, "bytes each", memoryOfNodes),
		of(swarmLookup, "lookups/s", lookedUp), of(swarmRecover, "s", recovered),
	}
}

func (k kind) ofSwarm() bool {
	return k == registered || k == memoryOfNodes || k == lookedUp || k == recovered
}

// swarmStage is a Brain and the simulated hosts, with what was measured: all rows are of one run.
type swarmStage struct {
	brain, hosts *process
	figures      map[kind]figures
}

func (s *swarmStage) close() error {
	var errs []error
	for _, p := range []*process{s.hosts, s.brain} {
		if p != nil {
			errs = append(errs, p.stop())
		}
	}
	return errors.Join(errs...)
}

func (d *driver) measureSwarm(ctx context.Context, s *machinesStage, r *row, j job) (figures, error) {
	if s.swarm == nil {
		s.swarm = &swarmStage{figures: make(map[kind]figures)}
		if err := d.runSwarm(ctx, s, j); err != nil {
			return figures{}, err
		}
	}
	f, ok := s.swarm.figures[r.job.Kind]
	if !ok {
		return figures{}, errors.New("it was not measured, because of an earlier failure")
	}
	return f, nil
}

// runSwarm measures all rows.
func (d *driver) runSwarm(ctx context.Context, s *machinesStage, j job) error {
	w := s.swarm
	brainEnv := append(d.machineEnv(&machinesStage{dir: s.dir}, "swarm"), "RAYLINK_LOG=error") // without a warning for each lost host
	var err error
	if w.brain, err = spawn(ctx, brainEnv, "brain"); err != nil {
		return err
	}
	address := w.brain.address
	if w.hosts, err = spawn(ctx, append(d.env(), "RAYLINK_BRAIN="+address), swarmRole, "raylink"); err != nil {
		return err
	}
	if _, err := w.hosts.ask(request{Op: opAttach, Job: j}); err != nil {
		return err
	}
	before, err := w.memory()
	if err != nil {
		return err
	}
	if w.figures[registered], err = w.calls(opRegister, j); err != nil {
		return err
	}
	if _, err := w.hosts.ask(request{Op: opRun, Job: j}); err != nil {
		return err
	}
	after, err := w.memory()
	if err != nil {
		return err
	}
	w.figures[memoryOfNodes] = figures{value: (float64(after) - float64(before)) / float64(j.Inflight)}
	if w.figures[lookedUp], err = w.calls(opLookup, j); err != nil {
		return err
	}

	if err := w.brain.cmd.Process.Kill(); err != nil {
		return err
	}
	_ = w.brain.stop() // it was killed
	begun := time.Now()
	if w.brain, err = spawn(ctx, append(brainEnv, "RAYLINK_LISTEN="+address), "brain"); err != nil {
		return fmt.Errorf("starting Brain again: %w", err)
	}
	serving := time.Since(begun)
	if _, err := w.hosts.ask(request{Op: opReturn, Job: j}); err != nil {
		return err
	}
	took := time.Since(begun)
	fmt.Fprintf(d.log, "Brain served again after %.2f s, and all hosts had their leases after %.2f s\n", serving.Seconds(), took.Seconds())
	w.figures[recovered] = figures{value: took.Seconds(), p50: float64(took.Microseconds()), p99: float64(took.Microseconds())}
	return nil
}

// calls measures calls of the hosts, with the CPU time of both sides.
func (s *swarmStage) calls(op string, j job) (figures, error) {
	before, err := cpuOfProcesses(s.hosts, s.brain)
	if err != nil {
		return figures{}, err
	}
	ran, err := s.hosts.ask(request{Op: op, Job: j})
	if err != nil {
		return figures{}, err
	}
	after, err := cpuOfProcesses(s.hosts, s.brain)
	o := ran.Outcome
	return figures{
		value: float64(o.Ops) / o.Seconds, p50: o.P50 / 1e3, p99: o.P99 / 1e3, cpu: float64((after - before).Microseconds()) / float64(max(o.Ops, 1)),
	}, err
}

// memory returns the size of Brain's heap and stacks after a collection.
func (s *swarmStage) memory() (uint64, error) {
	var res response
	var err error
	for range 2 { // pooled objects are freed by the second one
		if res, err = s.brain.ask(request{Op: "collect"}); err != nil {
			return 0, err
		}
	}
	return res.Usage.Memory, nil
}
