package main

import (
	"context"
	_ "embed"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
)

// Buffers of other systems, with callers in Python, and RayLink's replay through its node.
const (
	reverbSystem  = "reverb"
	cpprbSystem   = "cpprb"
	raylinkRemote = "raylink-remote"
)

// bufferPackages are what the benchmark installs from PyPI. This version of Reverb, the last one,
// needs this one of TensorFlow, and has no wheels for a Python later than 3.11.
var bufferPackages = []string{"dm-reverb==0.14.0", "tensorflow-cpu==2.15.1", "cpprb==11.0.0"} //nolint:gochecknoglobals // constant

//go:embed buffers.py
var bufferScript []byte

// bufferRows are rows of the replay beside other buffers, which `make bench-reverb` measures.
func bufferRows() []row {
	systems := []string{"raylink", raylinkRemote, cpprbSystem, reverbSystem}
	return []row{
		{
			name: "replay/peers/insert/256x1KiB", unit: "rows/s", replay: replayLoad{bytes: warmBytes}, systems: systems,
			job: job{Kind: replayWrite, Size: 1024, Inflight: 256},
		},
		{
			name: "replay/peers/sample/256x1KiB", unit: "rows/s", replay: replayLoad{bytes: warmBytes}, systems: systems,
			job: job{Kind: replaySample, Size: 1024, Inflight: 256},
		},
	}
}

// bufferClient returns a process with a caller of Reverb or of cpprb. It has room for as many rows
// as fit into the row's bytes.
func (d *driver) bufferClient(ctx context.Context, s *replayStage, r *row, system string) (*process, error) {
	python, err := pythonWith(ctx, d.options.install, "make bench-reverb", bufferPackages, "python3.11", "python3")
	if err != nil {
		return nil, err
	}
	script := filepath.Join(s.dir, "buffers.py")
	if err := os.WriteFile(script, bufferScript, 0o600); err != nil {
		return nil, err
	}
	rows, size := strconv.Itoa(r.replay.bytes/r.job.Size), strconv.Itoa(r.job.Size)
	start := func(words ...string) (*process, error) {
		cmd := exec.CommandContext(ctx, python, append([]string{script}, words...)...)
		cmd.Env = append(os.Environ(), "CUDA_VISIBLE_DEVICES=", "TF_CPP_MIN_LOG_LEVEL=3")
		return spawnCommand(cmd, system+" "+words[0], func(int) {})
	}
	address := "none"
	if system == reverbSystem {
		key := replayKey{system: system, load: r.replay, size: r.job.Size}
		if s.owners[key] == nil {
			if s.owners[key], err = start("server", rows, size); err != nil {
				delete(s.owners, key)
				return nil, err
			}
		}
		address = s.owners[key].address
	}
	return start(system, string(r.job.Kind), rows, size, address)
}
