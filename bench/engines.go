package main

import (
	"bufio"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Rows about engines, beside Ray on a cluster of three nodes on this machine.
const (
	enginesPrefix    = "engines/"
	rayUp            = "engines/ray/up/machines=3"
	rayCreate        = "engines/ray/create"
	rayCallSync      = "engines/ray/call/sync"
	rayCallAsync     = "engines/ray/call/async"
	rayBroadcast     = "engines/ray/broadcast/256MiB"
	rayClusterNodes  = 3
	rayCallsInFlight = 1000
)

func enginesRows() []row {
	systems := []string{"raylink", raySystem}
	return []row{
		{name: rayUp, unit: "s", job: job{Kind: enginesUp}, systems: systems},
		{name: rayCreate, unit: "nodes/s", job: job{Kind: machineCreate, Inflight: 1}, systems: systems},
		{name: rayCallSync, network: "tcp", unit: "calls/s", job: job{Kind: unary, Size: 16, Inflight: 1}, systems: systems},
		{name: rayCallAsync, network: "tcp", unit: "calls/s", job: job{Kind: async, Size: 16, Inflight: rayCallsInFlight}, systems: systems},
		{
			name: rayBroadcast, unit: "MB/s", layout: threeNodes, once: true,
			job: job{Kind: psDeliver, Size: 256 << 20, Inflight: rayClusterNodes}, systems: systems,
		},
	}
}

// ofEngine reports whether a system is measured on a row by the processes of an engine's stage: the
// other rows about engines are like those about calls, machines and parameters.
func (r *row) ofEngine(system string) bool {
	return strings.HasPrefix(r.name, enginesPrefix) && !r.parameters() && (system == raySystem || r.job.Kind == enginesUp)
}

//go:embed engines.py
var enginesScript []byte

// enginesStage is a Ray cluster, and a driver of its own. They are started on first use.
type enginesStage struct {
	dir     string
	python  string
	raylink string // the command line; made on first use
	peer    *process
}

func (s *enginesStage) close() error {
	var err error
	if s.peer != nil {
		err = s.peer.stop()
	}
	return errors.Join(err, endProcessesOf(s.dir), os.RemoveAll(s.dir))
}

// discardEngines ends the cluster after a failure.
func (d *driver) discardEngines() {
	if d.engines != nil {
		_ = d.engines.close() // the failure was reported already
		d.engines = nil
	}
}

// startEngines starts the cluster. Its Python is the one that runs use, because a driver must have
// the cluster's versions.
func (d *driver) startEngines(ctx context.Context) (*enginesStage, error) {
	if d.engines != nil {
		return d.engines, nil
	}
	module, err := moduleDir()
	if err != nil {
		return nil, err
	}
	python := filepath.Join(filepath.Dir(module), ".cache", "ray", "venv", "bin", "python")
	if exec.CommandContext(ctx, python, "-c", "import ray, numpy").Run() != nil {
		return nil, &missingError{"Ray is not installed: `make ray` installs it"}
	}
	// Ray's sockets are in it: the path must be short.
	dir, err := os.MkdirTemp("", "rlray-")
	if err != nil {
		return nil, err
	}
	s := &enginesStage{dir: dir, python: python}
	script := filepath.Join(dir, "engines.py")
	if err := os.WriteFile(script, enginesScript, 0o600); err != nil {
		return nil, errors.Join(err, s.close())
	}
	cmd := exec.CommandContext(ctx, python, script, dir)
	cmd.Env = append(os.Environ(), "RAY_USAGE_STATS_ENABLED=0", "RAY_raylet_start_wait_time_s=120",
		"RAY_AUTH_MODE=token", "RAY_AUTH_TOKEN="+d.token, "TMPDIR="+dir, rayMark+dir)
	if s.peer, err = spawnCommand(cmd, raySystem, func(int) {}); err != nil {
		return nil, errors.Join(err, s.close())
	}
	d.engines = s
	return s, nil
}

// newRayClusterScene is the scene of Ray for the row that broadcasts: the stage's processes.
func (d *driver) newRayClusterScene(ctx context.Context) (*scene, error) {
	s, err := d.startEngines(ctx)
	if err != nil {
		return nil, err
	}
	d.engines = nil // the scene ends it
	return &scene{dir: s.dir, pusher: s.peer, after: func() error { return endProcessesOf(s.dir) }}, nil
}

// measureEngines measures one system on one row about engines.
func (d *driver) measureEngines(ctx context.Context, r *row, j job, system string, res *results) error {
	s, err := d.startEngines(ctx)
	if err != nil {
		return err
	}
	var ran response
	if system == raySystem {
		ran, err = s.peer.ask(request{Op: "run", Job: j})
	} else {
		ran.Outcome, err = d.upOnRay(ctx, s)
	}
	if err != nil {
		return err
	}
	res.add(r.name, system, machineFigures(r, ran.Outcome))
	return nil
}

// upOnRay runs a program over three nodes of the cluster, and returns how long it took from the
// command until all machines had joined.
func (d *driver) upOnRay(ctx context.Context, s *enginesStage) (outcome, error) {
	module, err := moduleDir()
	if err != nil {
		return outcome{}, err
	}
	root := filepath.Dir(module)
	if s.raylink == "" {
		s.raylink = filepath.Join(s.dir, "raylink")
		build := exec.CommandContext(ctx, "go", "build", "-o", s.raylink, "./cmd/raylink")
		build.Dir = root
		if text, err := build.CombinedOutput(); err != nil {
			return outcome{}, fmt.Errorf("building raylink: %w: %s", err, text)
		}
	}
	if _, err := s.peer.ask(request{Op: "away"}); err != nil {
		return outcome{}, err
	}
	cmd := exec.CommandContext(ctx, s.raylink, "run", "--on", "ray", "--machines", strconv.Itoa(rayClusterNodes), "--", "true")
	cmd.Env = append(os.Environ(), d.env()...)
	cmd.Env = append(cmd.Env, "RAY_ADDRESS="+s.peer.address, "RAYLINK_PYTHON="+s.python, "PYTHONPATH="+filepath.Join(root, "clients", "python"),
		"RAYLINK_TOKEN=", "RAYLINK_BRAIN=", "RAY_AUTH_MODE=token", "RAY_AUTH_TOKEN="+d.token, "TMPDIR="+s.dir, rayMark+s.dir)
	said, err := cmd.StderrPipe()
	if err != nil {
		return outcome{}, err
	}
	begun := time.Now()
	if err := cmd.Start(); err != nil {
		return outcome{}, err
	}
	var took time.Duration
	var last string
	all := fmt.Sprintf("(%d of %[1]d)", rayClusterNodes)
	for lines := bufio.NewScanner(said); lines.Scan(); {
		last = lines.Text()
		if took == 0 && strings.Contains(last, all) {
			took = time.Since(begun)
		}
	}
	if err := cmd.Wait(); err != nil || took == 0 {
		return outcome{}, fmt.Errorf("raylink run: %w: %s", err, last)
	}
	nanoseconds := float64(took.Nanoseconds())
	return outcome{Ops: 1, Seconds: took.Seconds(), P50: nanoseconds, P99: nanoseconds}, nil
}
