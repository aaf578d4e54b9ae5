package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"runtime/pprof"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// roleEnv selects the role of a process; the driver runs without it. The value consists of words:
// "brain"; "server" or "client", followed by a system, a network, and for a client an address; or a
// role of the parameter server, of the storage, of the replay or of machines, see psrole.go,
// storagerole.go, replayrole.go and machinesrole.go.
const roleEnv = "RAYLINK_BENCH_ROLE"

// request is a message from the driver to a process, one line of JSON.
type request struct {
	Op  string `json:"op"` // usage, collect, prepare, run, or one of psrole.go or storagefilled.go
	Job job    `json:"job"`
	// Stamp is the number of a version of parameters.
	Stamp uint64 `json:"stamp,omitempty"`
	// Everywhere makes a push wait until all receivers have the version.
	Everywhere bool `json:"everywhere,omitempty"`
}

// response is the process's response. An initial one, without a request, means that it is ready.
type response struct {
	Error   string `json:"error,omitempty"`
	Address string `json:"address,omitempty"`
	// Token is the join token of a Brain with TLS.
	Token   string  `json:"token,omitempty"`
	Usage   usage   `json:"usage"`
	Outcome outcome `json:"outcome"`
	// The fields below are those of the parameter server's processes.
	Moment   moment `json:"moment"`
	Stamp    uint64 `json:"stamp,omitempty"`
	Checksum uint32 `json:"checksum,omitempty"`
	PID      int    `json:"pid,omitempty"`
}

// moment is when an operation of the parameter server took place, by the machine's monotonic clock,
// or how long its parts took.
type moment struct {
	Begun time.Duration `json:"begun"`
	Ended time.Duration `json:"ended"`
	Pull  time.Duration `json:"pull"`
	Read  time.Duration `json:"read"`
}

// usage is the resources that a process has used.
type usage struct {
	Mallocs uint64 `json:"mallocs"`
	// Memory is the size of heap and stacks in bytes.
	Memory uint64 `json:"memory"`
	// Peak is the peak memory since the last collection.
	Peak uint64 `json:"peak"`
	// CPU is the CPU time used.
	CPU time.Duration `json:"cpu"`
}

// runRole runs a process other than the driver. It returns when the driver closes its input, or
// dies.
func runRole(words []string, in io.Reader, out io.Writer) error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	c := &driverConn{in: bufio.NewScanner(in), out: json.NewEncoder(out)}
	if words[0] == "brain" {
		return c.brain(ctx, cancel)
	}
	if strings.HasPrefix(words[0], "machines-") {
		return c.machinesRole(ctx, cancel, words)
	}
	stop, err := profile(profileName(words))
	if err != nil {
		return c.reportError(err)
	}
	if words[0] == storageServerRole || words[0] == storageClientRole {
		return errors.Join(c.storageRole(ctx, words), stop())
	}
	if words[0] == replayOwnerRole || words[0] == replayClientRole {
		return errors.Join(c.replayRole(ctx, words), stop())
	}
	if words[0] == pusherRole || words[0] == readerRole {
		return errors.Join(c.psRole(ctx, words[0], words[1], words[2:]), stop())
	}
	s, err := systemNamed(words[1])
	if err != nil {
		return c.reportError(err)
	}
	switch words[0] {
	case "server":
		err = c.server(ctx, s, words[2])
	case "client":
		err = c.client(ctx, s, words[2], words[3])
	default:
		err = c.reportError(fmt.Errorf("unknown role %q", words[0]))
	}
	return errors.Join(err, stop())
}

// driverConn is the connection of a process to the driver.
type driverConn struct {
	in  *bufio.Scanner
	out *json.Encoder
}

func (c *driverConn) reportError(err error) error {
	return errors.Join(err, c.out.Encode(response{Error: err.Error()}))
}

func (c *driverConn) brain(ctx context.Context, cancel context.CancelFunc) error {
	defer collectOnSignal()()
	go func() {
		// Exit when the driver closes the input.
		_ = c.serve(func(r request) (response, error) {
			return response{}, fmt.Errorf("the process of Brain does not support %q", r.Op)
		})
		cancel()
	}()
	// Not in a goroutine: the call does not return if this process was started to host Brain's
	// nodes.
	return brainRole(ctx, func(address string) {
		if !encrypts() {
			_ = c.out.Encode(response{Address: address})
		}
	}, func(address, token string) { _ = c.out.Encode(response{Address: address, Token: token}) })
}

func (c *driverConn) server(ctx context.Context, s system, network string) error {
	srv, err := s.serve(ctx, network)
	if err != nil {
		return c.reportError(err)
	}
	return errors.Join(c.answer(response{Address: srv.address()}, func(r request) (response, error) {
		return response{}, fmt.Errorf("a server does not support %q", r.Op)
	}), srv.close())
}

func (c *driverConn) client(ctx context.Context, s system, network, address string) error {
	cl, err := s.dial(ctx, network, address)
	if err != nil {
		return c.reportError(err)
	}
	return errors.Join(c.answer(response{}, callsOf(cl)), cl.close())
}

// callsOf serves the operations of a process with callers.
func callsOf(cl client) func(request) (response, error) {
	var l *load
	return func(r request) (response, error) {
		switch r.Op {
		case "prepare":
			if l == nil || l.job != r.Job {
				l = newLoad(cl, r.Job)
			}
			return response{}, l.warmUp()
		case "run":
			o, err := l.run()
			return response{Outcome: o}, err
		}
		return response{}, fmt.Errorf("a client does not support %q", r.Op)
	}
}

// answer serves requests until the input ends. It handles those that all processes support itself.
func (c *driverConn) answer(ready response, do func(request) (response, error)) error {
	if err := c.out.Encode(ready); err != nil {
		return err
	}
	return c.serve(do)
}

func (c *driverConn) serve(do func(request) (response, error)) error {
	peak := new(peak)
	defer peak.stop()
	for c.in.Scan() {
		var r request
		if err := json.Unmarshal(c.in.Bytes(), &r); err != nil {
			return err
		}
		var res response
		var err error
		switch r.Op {
		case "usage":
		case "collect":
			peak.stop()
			runtime.GC()
			debug.FreeOSMemory()
			peak.start()
		default:
			res, err = do(r)
		}
		if err != nil {
			res.Error = err.Error()
		}
		res.Usage = used()
		res.Usage.Peak = peak.bytes.Load()
		if err := c.out.Encode(res); err != nil {
			return err
		}
	}
	return c.in.Err()
}

func used() usage {
	samples := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}, {Name: "/memory/classes/heap/stacks:bytes"}}
	metrics.Read(samples)
	return usage{Mallocs: mallocs(), Memory: samples[0].Value.Uint64() + samples[1].Value.Uint64(), CPU: processorTime()}
}

// mallocs returns the exact number of objects allocated by this process. It stops the world.
func mallocs() uint64 {
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	return stats.Mallocs
}

// peak samples the memory usage of the process.
type peak struct {
	bytes  atomic.Uint64
	cancel context.CancelFunc
	done   chan struct{}
}

func (p *peak) start() {
	p.bytes.Store(0)
	ctx, cancel := context.WithCancel(context.Background())
	p.cancel, p.done = cancel, make(chan struct{})
	go func() {
		defer close(p.done)
		samples := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}, {Name: "/memory/classes/heap/stacks:bytes"}}
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for {
			metrics.Read(samples)
			p.bytes.Store(max(p.bytes.Load(), samples[0].Value.Uint64()+samples[1].Value.Uint64()))
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
		}
	}()
}

func (p *peak) stop() {
	if p.cancel != nil {
		p.cancel()
		<-p.done
		p.cancel = nil
	}
}

// profileEnv lists the profiles to write: cpu=PREFIX or mem=PREFIX, separated by commas.
const profileEnv = "RAYLINK_BENCH_PROFILE"

// profileName returns what distinguishes the profiles of a role's process.
func profileName(words []string) string {
	name := strings.Join(words[:2], "-")
	if strings.HasPrefix(words[0], "ps-") || strings.HasPrefix(words[0], "storage-") || strings.HasPrefix(words[0], "replay-") {
		name += "-" + strconv.Itoa(os.Getpid())
	}
	return name
}

// profile starts the requested profiles. The returned function writes them.
func profile(name string) (stop func() error, err error) {
	stop = func() error { return nil }
	for what := range strings.SplitSeq(os.Getenv(profileEnv), ",") {
		kind, prefix, _ := strings.Cut(what, "=")
		if prefix == "" {
			continue
		}
		f, err := os.Create(filepath.Clean(prefix + "." + name + ".prof"))
		if err != nil {
			return nil, err
		}
		before := stop
		if kind == "cpu" {
			if err := pprof.StartCPUProfile(f); err != nil {
				return nil, errors.Join(err, f.Close())
			}
			stop = func() error {
				pprof.StopCPUProfile()
				return errors.Join(before(), f.Close())
			}
			continue
		}
		stop = func() error { return errors.Join(before(), pprof.Lookup("allocs").WriteTo(f, 0), f.Close()) }
	}
	return stop, nil
}
