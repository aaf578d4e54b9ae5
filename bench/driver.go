package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// driver starts the benchmark's processes and measures them.
type driver struct {
	options options
	log     io.Writer
	dir     string
	token   string
	brain   *process
	// secured is a Brain with TLS, for rows with the network tlsNetwork.
	secured *process
	pairs   map[pairKey]*pair
	scenes  map[sceneKey]*scene
	shared  *sharedMemory // nil until a scene needs it
	stage   *storageStage // nil until a row of the storage needs it
	replays *replayStage  // nil until a row of the replay needs it
	// engines is nil until a row about engines needs it.
	engines *enginesStage
	// machines is nil until a row about machines needs it.
	machines *machinesStage
}

// options are the benchmark's flags.
type options struct {
	pattern  string
	systems  []string
	rounds   int
	duration time.Duration
	profile  string
	// install permits the installation of packages that are missing.
	install bool
}

type pairKey struct{ system, network string }

// pair is the server and the client of a system.
type pair struct{ server, client *process }

func (p *pair) stop() error {
	var err error
	if p.client != nil {
		err = p.client.stop()
	}
	return errors.Join(err, p.server.stop())
}

// figures are the results of one round of one system on one row.
type figures struct {
	value, p50, p99, allocs, cpu float64
	// goroutines is the number of goroutines of the client, if the row measures it; peak is the
	// peak memory of both sides in bytes.
	goroutines int
	peak       uint64
}

func newDriver(o options, log io.Writer) (*driver, error) {
	dir, err := os.MkdirTemp("", "raylink-bench-")
	if err != nil {
		return nil, err
	}
	return &driver{options: o, log: log, dir: dir, token: rand.Text(), pairs: make(map[pairKey]*pair), scenes: make(map[sceneKey]*scene)}, nil
}

// close stops all processes.
func (d *driver) close() error {
	var errs []error
	for _, p := range d.pairs {
		errs = append(errs, p.stop())
	}
	if d.stage != nil {
		errs = append(errs, d.stage.close())
	}
	if d.replays != nil {
		errs = append(errs, d.replays.close())
	}
	if d.engines != nil {
		errs = append(errs, d.engines.close())
	}
	if d.machines != nil {
		errs = append(errs, d.machines.close())
	}
	for _, brain := range []*process{d.brain, d.secured} {
		if brain != nil {
			errs = append(errs, brain.stop())
		}
	}
	for _, s := range d.scenes {
		errs = append(errs, s.close())
	}
	if d.shared != nil {
		errs = append(errs, d.shared.close())
	}
	return errors.Join(append(errs, os.RemoveAll(d.dir))...)
}

// env returns the environment of the processes. It overrides all of RayLink's variables.
func (d *driver) env() []string {
	brain := ""
	if d.brain != nil {
		brain = d.brain.address
	}
	return []string{
		dirEnv + "=" + d.dir, profileEnv + "=" + d.options.profile,
		"RAYLINK_RUNTIME_DIR=" + filepath.Join(d.dir, "h"), "RAYLINK_DATA=" + filepath.Join(d.dir, "data"),
		"RAYLINK_BRAIN=" + brain, "RAYLINK_TOKEN=" + d.token,
		"RAYLINK_LISTEN=127.0.0.1:0", "RAYLINK_ADVERTISE=", "RAYLINK_INSECURE=", "RAYLINK_TLS=", "RAYLINK_MACHINE=",
	}
}

// pair returns a system's server and client on a network. It starts them on first use.
func (d *driver) pair(ctx context.Context, system, network string) (*pair, error) {
	key := pairKey{system, network}
	if p := d.pairs[key]; p != nil {
		return p, nil
	}
	var err error
	if system == "raylink" || system == "raylink-concurrent" {
		if network == tlsNetwork {
			err = d.startSecured(ctx)
		} else {
			err = d.startBrain(ctx)
		}
		if err != nil {
			return nil, err
		}
	}
	env := d.env()
	if network == tlsNetwork {
		env = d.securedEnv()
	}
	p := &pair{}
	if p.server, err = spawn(ctx, env, "server", system, network); err != nil {
		return nil, err
	}
	d.pairs[key] = p
	p.client, err = spawn(ctx, env, "client", system, network, p.server.address)
	return p, err
}

// startBrain starts Brain's process on first use.
func (d *driver) startBrain(ctx context.Context) error {
	if d.brain != nil {
		return nil
	}
	var err error
	d.brain, err = spawn(ctx, d.env(), "brain")
	return err
}

// startSecured starts the process of a Brain with TLS on first use.
func (d *driver) startSecured(ctx context.Context) error {
	if d.secured != nil {
		return nil
	}
	var err error
	d.secured, err = spawn(ctx, d.securedEnv(), "brain")
	return err
}

// securedEnv is the environment of the processes of a system with TLS.
func (d *driver) securedEnv() []string {
	brain, token := "", ""
	if d.secured != nil {
		brain, token = d.secured.address, d.secured.token
	}
	dir := filepath.Join(d.dir, "tls")
	return append(d.env(), "RAYLINK_TLS=1", "RAYLINK_BRAIN="+brain, "RAYLINK_TOKEN="+token,
		"RAYLINK_RUNTIME_DIR="+filepath.Join(dir, "h"), "RAYLINK_DATA="+filepath.Join(dir, "data"))
}

// discard stops a pair that failed; the next measurement starts a new one.
func (d *driver) discard(system, network string) {
	key := pairKey{system, network}
	if p := d.pairs[key]; p != nil {
		_ = p.stop() // the failure was reported already
		delete(d.pairs, key)
	}
}

// run measures all rows, round by round. The order of the systems differs between rounds.
func (d *driver) run(ctx context.Context, rs []row) (*results, error) {
	res := newResults(rs)
	for round := range d.options.rounds {
		for i := range rs {
			r := &rs[i]
			if r.once && round > 0 {
				continue
			}
			names := d.selectedSystems(r)
			for j := range names {
				if err := d.measure(ctx, r, names[(j+round)%len(names)], res); err != nil {
					return nil, err
				}
			}
		}
		fmt.Fprintf(d.log, "round %d of %d\n", round+1, d.options.rounds)
	}
	return res, nil
}

// selectedSystems returns the systems of a row that the options select.
func (d *driver) selectedSystems(r *row) []string {
	return slices.DeleteFunc(slices.Clone(r.systems), func(s string) bool {
		if s == plainCalls && r.replay.bytes == 0 {
			s = "raylink"
		}
		return len(d.options.systems) > 0 && !slices.Contains(d.options.systems, s)
	})
}

// measure measures one system on one row once. It records failures in the results; an error means
// that the run can't continue.
func (d *driver) measure(ctx context.Context, r *row, system string, res *results) error {
	j := r.job
	j.Duration = d.options.duration
	process := system
	if system == plainCalls {
		process, j.Kind = "raylink", plain
	}
	var err error
	switch {
	case r.job.Kind == pluginTime:
		err = d.measurePlugin(r, res)
	case r.code():
		err = d.measureCode(ctx, r, system, res)
	case r.parameters():
		err = d.measureParameters(ctx, r, j, system, res)
	case r.storage.work != "":
		err = d.measureStorage(ctx, r, j, system, res)
	case r.replay.bytes != 0:
		err = d.measureReplay(ctx, r, j, system, res)
	case r.ofEngine(system):
		err = d.measureEngines(ctx, r, j, system, res)
	case r.job.Kind.ofMachines():
		err = d.measureMachines(ctx, r, j, system, res)
	case r.size():
		err = d.measureSize(ctx, r, j, process, res)
	default:
		err = d.measureCalls(ctx, r, j, system, process, res)
	}
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if missing, ok := errors.AsType[*missingError](err); ok {
		res.missing[cell{r.name, system}] = missing.reason
		return nil
	}
	err = fmt.Errorf("%s on %s: %w", system, r.name, err)
	fmt.Fprintln(d.log, err)
	res.failed = append(res.failed, err)
	if r.storage.work != "" {
		d.discardStorage()
		return nil
	}
	if r.replay.bytes != 0 {
		d.discardReplays()
		return nil
	}
	if r.ofEngine(system) {
		d.discardEngines()
		return nil
	}
	if r.job.Kind.ofMachines() {
		d.discardMachines()
		return nil
	}
	d.discard(process, r.network)
	_ = d.discardScene(system, r.layout) // the failure was reported already
	return nil
}

func (d *driver) measureCalls(ctx context.Context, r *row, j job, system, process string, res *results) error {
	p, err := d.pair(ctx, process, r.network)
	if err != nil {
		return err
	}
	if _, err := p.client.ask(request{Op: "prepare", Job: j}); err != nil {
		return err
	}
	client, server, err := p.collect()
	if err != nil {
		return err
	}
	ran, err := p.client.ask(request{Op: "run"})
	if err != nil {
		return err
	}
	after, err := p.server.ask(request{Op: "usage"})
	if err != nil {
		return err
	}
	o := ran.Outcome
	allocs := o.Mallocs + after.Usage.Mallocs - server.Mallocs
	f := figures{value: r.value(o), p50: o.P50 / 1e3, p99: o.P99 / 1e3, goroutines: o.Goroutines, peak: ran.Usage.Peak + after.Usage.Peak}
	if r.job.Kind != stuck {
		f.allocs = float64(allocs) / float64(o.Ops)
		f.cpu = float64((ran.Usage.CPU - client.CPU + after.Usage.CPU - server.CPU).Nanoseconds()) / 1e3 / float64(o.Ops)
	}
	res.add(r.name, system, f)
	return nil
}

// measureSize measures the memory that the row's objects take in a fresh server and client.
func (d *driver) measureSize(ctx context.Context, r *row, j job, system string, res *results) error {
	d.discard(system, r.network)
	p, err := d.pair(ctx, system, r.network)
	if err != nil {
		return err
	}
	defer d.discard(system, r.network)
	if _, err := p.client.ask(request{Op: "prepare", Job: j}); err != nil {
		return err
	}
	var before, after [3]uint64 // the client, the server, Brain
	measureMemory := func(memory *[3]uint64) error {
		// Twice, because pooled objects are freed by the second collection.
		for range 2 {
			client, server, err := p.collect()
			if err != nil {
				return err
			}
			memory[0], memory[1] = client.Memory, server.Memory
			if d.brain != nil {
				brain, err := d.brain.ask(request{Op: "collect"})
				if err != nil {
					return err
				}
				memory[2] = brain.Usage.Memory
			}
		}
		return nil
	}
	if err := measureMemory(&before); err != nil {
		return err
	}
	if _, err := p.client.ask(request{Op: "run"}); err != nil {
		return err
	}
	if err := measureMemory(&after); err != nil {
		return err
	}
	each := func(i int) float64 { return (float64(after[i]) - float64(before[i])) / float64(j.Inflight) }
	if j.Kind == nodes {
		res.add(r.name, system, figures{value: each(0)})
		res.add(r.name, brainPart, figures{value: each(2)})
		return nil
	}
	res.add(r.name, system, figures{value: each(0) + each(1)})
	return nil
}

// collect runs a garbage collection on both sides, and returns their usage.
func (p *pair) collect() (client, server usage, err error) {
	c, err := p.client.ask(request{Op: "collect"})
	if err != nil {
		return usage{}, usage{}, err
	}
	s, err := p.server.ask(request{Op: "collect"})
	return c.Usage, s.Usage, err
}
