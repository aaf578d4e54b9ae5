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

// driver runs the processes, and has them measured.
type driver struct {
	options options
	log     io.Writer
	dir     string
	token   string
	brain   *process
	pairs   map[pairKey]*pair
}

// options are the benchmark's flags.
type options struct {
	pattern  string
	systems  []string
	rounds   int
	duration time.Duration
	profile  string
}

type pairKey struct{ system, network string }

// pair is a system's server and client.
type pair struct{ server, client *process }

func (p *pair) stop() error {
	var err error
	if p.client != nil {
		err = p.client.stop()
	}
	return errors.Join(err, p.server.stop())
}

// figures are what one round of one system on one row came to.
type figures struct {
	value, p50, p99, allocs float64
}

func newDriver(o options, log io.Writer) (*driver, error) {
	dir, err := os.MkdirTemp("", "raylink-bench-")
	if err != nil {
		return nil, err
	}
	return &driver{options: o, log: log, dir: dir, token: rand.Text(), pairs: make(map[pairKey]*pair)}, nil
}

// close ends all processes.
func (d *driver) close() error {
	var errs []error
	for _, p := range d.pairs {
		errs = append(errs, p.stop())
	}
	if d.brain != nil {
		errs = append(errs, d.brain.stop())
	}
	return errors.Join(append(errs, os.RemoveAll(d.dir))...)
}

// env is the environment of the processes: none of RayLink's variables may come from outside.
func (d *driver) env() []string {
	env := []string{
		dirEnv + "=" + d.dir, profileEnv + "=" + d.options.profile,
		"RAYLINK_RUNTIME_DIR=" + filepath.Join(d.dir, "h"), "RAYLINK_DATA=" + filepath.Join(d.dir, "data"),
		"RAYLINK_TOKEN=" + d.token, "RAYLINK_LISTEN=127.0.0.1:0", "RAYLINK_ADVERTISE=", "RAYLINK_INSECURE=", "RAYLINK_MACHINE=",
	}
	brain := ""
	if d.brain != nil {
		brain = d.brain.address
	}
	return append(env, "RAYLINK_BRAIN="+brain)
}

// pair is a system's server and client on a network, started when they are first needed.
func (d *driver) pair(ctx context.Context, system, network string) (*pair, error) {
	key := pairKey{system, network}
	if p := d.pairs[key]; p != nil {
		return p, nil
	}
	if d.brain == nil && (system == "raylink" || system == "raylink-concurrent") {
		var err error
		if d.brain, err = spawn(ctx, d.env(), "brain"); err != nil {
			return nil, err
		}
	}
	p := &pair{}
	var err error
	if p.server, err = spawn(ctx, d.env(), "server", system, network); err != nil {
		return nil, err
	}
	d.pairs[key] = p
	p.client, err = spawn(ctx, d.env(), "client", system, network, p.server.address)
	return p, err
}

// forget ends a pair that has failed; the next measurement starts another.
func (d *driver) forget(system, network string) {
	key := pairKey{system, network}
	if p := d.pairs[key]; p != nil {
		_ = p.stop() // it has failed already
		delete(d.pairs, key)
	}
}

// run measures all rows: round by round, and in each round the systems in another order.
func (d *driver) run(ctx context.Context, rs []row) (*results, error) {
	res := newResults(rs)
	for round := range d.options.rounds {
		for i := range rs {
			r := &rs[i]
			names := slices.DeleteFunc(slices.Clone(r.systems), func(s string) bool {
				return len(d.options.systems) > 0 && !slices.Contains(d.options.systems, s)
			})
			for j := range names {
				system := names[(j+round)%len(names)]
				f, err := d.measure(ctx, r, system)
				if err != nil {
					if ctx.Err() != nil {
						return nil, ctx.Err()
					}
					err = fmt.Errorf("%s on %s: %w", system, r.name, err)
					fmt.Fprintln(d.log, err)
					res.failed = append(res.failed, err)
					d.forget(system, r.network)
					continue
				}
				res.add(r.name, system, f)
			}
		}
		fmt.Fprintf(d.log, "round %d of %d\n", round+1, d.options.rounds)
	}
	return res, nil
}

// measure has one system do one row once.
func (d *driver) measure(ctx context.Context, r *row, system string) (figures, error) {
	p, err := d.pair(ctx, system, r.network)
	if err != nil {
		return figures{}, err
	}
	j := r.job
	j.Duration = d.options.duration
	if _, err := p.client.ask(request{Op: "prepare", Job: j}); err != nil {
		return figures{}, err
	}
	client, err := p.client.ask(request{Op: "collect"})
	if err != nil {
		return figures{}, err
	}
	server, err := p.server.ask(request{Op: "collect"})
	if err != nil {
		return figures{}, err
	}
	ran, err := p.client.ask(request{Op: "run"})
	if err != nil {
		return figures{}, err
	}
	after, err := p.server.ask(request{Op: "usage"})
	if err != nil {
		return figures{}, err
	}
	allocs := ran.Usage.Mallocs - client.Usage.Mallocs + after.Usage.Mallocs - server.Usage.Mallocs
	o := ran.Outcome
	return figures{value: r.value(o), p50: o.P50 / 1e3, p99: o.P99 / 1e3, allocs: float64(allocs) / float64(o.Ops)}, nil
}
