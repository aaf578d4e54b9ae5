package main

import (
	"context"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"
)

// The programs of Redis that the benchmark needs, both from Debian's redis-server.
const (
	redisServer    = "redis-server"
	redisBenchmark = "redis-benchmark"
)

// findRedis returns a [missingError] if Redis is not installed.
func findRedis() error {
	for _, program := range []string{redisServer, redisBenchmark} {
		if _, err := exec.LookPath(program); err != nil {
			return &missingError{program + " is not installed: `make redis` installs it, as root on Debian"}
		}
	}
	return nil
}

// runningRedis is a redis-server, a child of this process.
type runningRedis struct {
	cmd  *exec.Cmd
	at   string
	done chan error
}

// serveRedis starts redis-server on loopback, with its data in a directory. All writes are appended
// to a file, which it syncs each second.
func serveRedis(ctx context.Context, dir, _ string) (server, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	// The port is free until another process takes it: then redis-server ends with an error.
	l, err := new(net.ListenConfig).Listen(ctx, "tcp4", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	at := l.Addr().String()
	if err := l.Close(); err != nil {
		return nil, err
	}
	_, port, err := net.SplitHostPort(at)
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, redisServer, //nolint:gosec // the driver's directory
		"--bind", "127.0.0.1", "--port", port, "--dir", dir, "--save", "",
		"--appendonly", "yes", "--appendfsync", "everysec", "--loglevel", "warning")
	cmd.Stderr = os.Stderr
	r := &runningRedis{cmd: cmd, at: at, done: make(chan error, 1)}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	go func() { r.done <- cmd.Wait() }()
	if err := r.ready(ctx); err != nil {
		return nil, errors.Join(err, r.close())
	}
	return r, nil
}

// ready waits until redis-server answers.
func (r *runningRedis) ready(ctx context.Context) error {
	const limit, pause = 10 * time.Second, 10 * time.Millisecond
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for {
		err := ping(ctx, r.at)
		if err == nil {
			return nil
		}
		select {
		case ended := <-r.done:
			r.done <- ended
			return fmt.Errorf("%s has ended: %w", redisServer, ended)
		case <-ctx.Done():
			return fmt.Errorf("%s does not answer at %s: %w: %w", redisServer, r.at, ctx.Err(), err)
		case <-time.After(pause):
		}
	}
}

// ping has a server of Redis answer a command.
func ping(ctx context.Context, address string) error {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp4", address)
	if err != nil {
		return err
	}
	defer conn.Close() //nolint:errcheck // only for one command
	if deadline, ok := ctx.Deadline(); ok {
		if err := conn.SetDeadline(deadline); err != nil {
			return err
		}
	}
	if _, err := io.WriteString(conn, "PING\r\n"); err != nil {
		return err
	}
	const pong = "+PONG\r\n"
	answer := make([]byte, len(pong))
	if _, err := io.ReadFull(conn, answer); err != nil {
		return err
	}
	if string(answer) != pong {
		return fmt.Errorf("%s answered %q to PING", address, answer)
	}
	return nil
}

func (r *runningRedis) address() string { return r.at }

// close kills redis-server: its data are of no use.
func (r *runningRedis) close() error {
	if err := r.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	<-r.done //nolint:errcheck // it was killed
	return nil
}

// measureRedis runs redis-benchmark.
func (d *driver) measureRedis(ctx context.Context, s *storageStage, r *row, j job, system string) (figures, error) {
	server, err := d.storageServer(ctx, s, r, system)
	if err != nil {
		return figures{}, err
	}
	connections, pipeline := j.Inflight, 1
	if system == redisPipelined {
		connections, pipeline = 1, 16
	}
	// It takes a number of commands, not a duration: short runs, which also
	// warm up, measure how many it takes.
	const first = 2000
	f, err := runRedis(ctx, server, connections, pipeline, first)
	if err != nil {
		return figures{}, err
	}
	for _, share := range []float64{0.1, 1} {
		n := int(math.Ceil(f.value * j.Duration.Seconds() * share))
		if f, err = runRedis(ctx, server, connections, pipeline, max(n, first)); err != nil {
			return figures{}, err
		}
	}
	return f, nil
}

// runRedis has redis-benchmark send a number of commands.
func runRedis(ctx context.Context, server *process, connections, pipeline, commands int) (figures, error) {
	host, port, err := net.SplitHostPort(server.address)
	if err != nil {
		return figures{}, err
	}
	before, err := cpuOfProcesses(server)
	if err != nil {
		return figures{}, err
	}
	cmd := exec.CommandContext(ctx, redisBenchmark, "-h", host, "-p", port, "-c", strconv.Itoa(connections), "-P", strconv.Itoa(pipeline),
		"-n", strconv.Itoa(commands), "--csv", "INCR", counterKey)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return figures{}, fmt.Errorf("%s: %w", redisBenchmark, err)
	}
	after, err := cpuOfProcesses(server)
	if err != nil {
		return figures{}, err
	}
	f, err := redisFigures(string(out))
	used := cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime() + after - before
	f.cpu = float64(used.Microseconds()) / float64(commands)
	return f, err
}

// redisFigures reads the output of `redis-benchmark --csv`: a line of names, and a line of figures,
// with times in milliseconds.
func redisFigures(out string) (figures, error) {
	lines, err := csv.NewReader(strings.NewReader(out)).ReadAll()
	if err != nil || len(lines) != 2 {
		return figures{}, fmt.Errorf("the output of %s is not one line of figures: %w: %q", redisBenchmark, err, out)
	}
	var f figures
	for name, to := range map[string]*float64{"rps": &f.value, "p50_latency_ms": &f.p50, "p99_latency_ms": &f.p99} {
		i := 0
		for i < len(lines[0]) && lines[0][i] != name {
			i++
		}
		if i == len(lines[0]) {
			return figures{}, fmt.Errorf("the output of %s has no %s: %q", redisBenchmark, name, out)
		}
		if *to, err = strconv.ParseFloat(lines[1][i], 64); err != nil {
			return figures{}, fmt.Errorf("the output of %s: %s: %w", redisBenchmark, name, err)
		}
	}
	f.p50, f.p99 = 1e3*f.p50, 1e3*f.p99
	if f.value <= 0 {
		return figures{}, fmt.Errorf("the output of %s: %g calls/s", redisBenchmark, f.value)
	}
	return f, nil
}
