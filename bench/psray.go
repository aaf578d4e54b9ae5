package main

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// raySystem is Ray, the most widely used system with a comparable object store.
const raySystem = "ray"

// rayMark, followed by a directory, is in the environment of all of Ray's processes.
const rayMark = "RAYLINK_BENCH_RAY="

// opDeliver is the operation of Ray's process: it puts a version, and waits until all actors have
// read it.
const opDeliver = "deliver"

// rayPackages are what the benchmark installs from PyPI, into an environment of its own.
var rayPackages = []string{"ray==2.60.0", "numpy==2.4.6"} //nolint:gochecknoglobals // constant

//go:embed ray.py
var rayScript []byte

// rayPython returns the Python with Ray: see [pythonWith].
func rayPython(ctx context.Context, install bool) (string, error) {
	return pythonWith(ctx, install, "make bench BENCH=ps/deliver", rayPackages, "python3")
}

// newRayScene starts Ray with a number of actors.
func (d *driver) newRayScene(ctx context.Context, readers int) (*scene, error) {
	python, err := rayPython(ctx, d.options.install)
	if err != nil {
		return nil, err
	}
	// Ray's sockets are in it: the path must be short.
	dir, err := os.MkdirTemp("", "rlray-")
	if err != nil {
		return nil, err
	}
	s := &scene{dir: dir, after: func() error { return endProcessesOf(dir) }}
	script := filepath.Join(dir, "driver.py")
	if err := os.WriteFile(script, rayScript, 0o600); err != nil {
		return nil, errors.Join(err, s.close())
	}
	cmd := exec.CommandContext(ctx, python, script, dir, strconv.Itoa(readers))
	// It must neither report its use, nor let other machines run code here: without clusters, which
	// the second variable switches off on every platform, it listens on loopback only.
	cmd.Env = append(os.Environ(), "RAY_USAGE_STATS_ENABLED=0", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0",
		"RAY_AUTH_MODE=token", "RAY_AUTH_TOKEN="+d.token, rayMark+dir)
	if s.pusher, err = spawnCommand(cmd, raySystem, func(int) {}); err != nil {
		return nil, errors.Join(err, s.close())
	}
	return s, nil
}

// endProcessesOf ends the processes whose environment names a directory of Ray: those that Ray has
// left behind. It returns when they have ended.
func endProcessesOf(dir string) error {
	mark := []byte(rayMark + dir + "\x00")
	const limit = 10 * time.Second
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for begun := time.Now(); ; <-tick.C {
		running, err := processes()
		if err != nil {
			return err
		}
		left := 0
		for pid := range running {
			environment, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "environ"))
			if err != nil || !bytes.Contains(environment, mark) {
				continue // it has ended, or is another user's, or has nothing to do with it
			}
			left++
			if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
				return err
			}
		}
		if left == 0 {
			return nil
		}
		if time.Since(begun) > limit {
			return fmt.Errorf("%d processes of Ray were killed and are still there after %v", left, limit)
		}
	}
}
