package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	storagev1 "github.com/raylink/raylink/gen/raylink/storage/v1"
)

// Systems in rows of the storage, beside raylink.
const (
	// raylinkMemory is RayLink's storage without durability.
	raylinkMemory = "raylink-memory"
	// redisSystem is redis-server under redis-benchmark, redisPipelined the same with one
	// connection and pipelines of 16 commands, and rueidisSystem redis-server under a client in Go.
	redisSystem    = "redis"
	redisPipelined = "redis-pipelined"
	rueidisSystem  = "rueidis"
	// pebbleSystem is the store that the durable storage is built on, in the callers' process.
	pebbleSystem = "pebble"
)

// storagePrefix is what names of rows of the storage begin with.
const storagePrefix = "storage/"

// Rows of the storage with a goal.
const (
	incrCallers     = "storage/incr/callers=50"
	incrConnections = "storage/incr/connections=50"
	incrAsync       = "storage/incr/async"
	putAsync        = "storage/put/async/callers=50"
	putSync         = "storage/put/sync/callers=64"
	memoryMillion   = "storage/memory/keys=1000000"
	reopenMillion   = "storage/reopen/keys=1000000"
)

// storageWork is what a row of the storage measures; empty for other rows.
type storageWork string

const (
	incrWork   storageWork = "incr"
	putWork    storageWork = "put"
	memoryWork storageWork = "memory"
	reopenWork storageWork = "reopen"
)

// storageLoad is the part of a row of the storage that a job does not have.
type storageLoad struct {
	work       storageWork
	durability storagev1.Durability
	// connections is the number of connections between callers and storage; 0 means what the
	// system's client makes by itself, and for Redis one for each caller.
	connections int
}

// putBytes is the size of values in rows of puts.
const putBytes = 64

func storageRows() []row {
	const acknowledged, synced = storagev1.Durability_DURABILITY_ASYNC, storagev1.Durability_DURABILITY_SYNC
	return []row{
		{
			name: incrCallers, unit: "calls/s", storage: storageLoad{incrWork, acknowledged, 0}, job: job{Kind: unary, Inflight: 50},
			systems: []string{"raylink", raylinkMemory, redisSystem, rueidisSystem},
		},
		{
			name: incrConnections, unit: "calls/s", storage: storageLoad{incrWork, acknowledged, 50}, job: job{Kind: unary, Inflight: 50},
			systems: []string{"raylink", raylinkMemory, redisSystem},
		},
		{
			name: incrAsync, unit: "calls/s", storage: storageLoad{incrWork, acknowledged, 0}, job: job{Kind: async, Inflight: 512},
			systems: []string{"raylink", raylinkMemory, redisPipelined},
		},
		{
			name: putAsync, unit: "calls/s", storage: storageLoad{putWork, acknowledged, 0}, job: job{Kind: unary, Size: putBytes, Inflight: 50},
			systems: []string{"raylink", raylinkMemory},
		},
		{
			name: putSync, unit: "calls/s", storage: storageLoad{putWork, synced, 0}, job: job{Kind: unary, Size: putBytes, Inflight: 64},
			systems: []string{"raylink", pebbleSystem},
		},
		{
			name: memoryMillion, unit: "MiB", storage: storageLoad{memoryWork, acknowledged, 0}, once: true,
			job: job{Kind: storedKeys, Inflight: 1000000}, systems: []string{"raylink"},
		},
		{
			name: reopenMillion, unit: "s", storage: storageLoad{reopenWork, acknowledged, 0},
			job: job{Kind: storedKeys, Inflight: 1000000}, systems: []string{"raylink"},
		},
	}
}

// storageStage is the processes for rows of the storage. They are started on first use.
type storageStage struct {
	dir     string
	servers map[string]*process // by system and durability
	clients map[storageClientKey]*process
	million *filledStorage
}

type storageClientKey struct {
	system string
	load   storageLoad
}

// storageStage returns the stage, whose directory is on the disk: that of temporary files.
func (d *driver) storageStage() (*storageStage, error) {
	if d.stage == nil {
		dir := filepath.Join(d.dir, "storage")
		if err := os.Mkdir(dir, 0o700); err != nil {
			return nil, err
		}
		d.stage = &storageStage{dir: dir, servers: make(map[string]*process), clients: make(map[storageClientKey]*process)}
	}
	return d.stage, nil
}

func (s *storageStage) close() error {
	var errs []error
	for _, p := range s.clients {
		errs = append(errs, p.stop())
	}
	for _, p := range s.servers {
		errs = append(errs, p.stop())
	}
	if s.million != nil {
		errs = append(errs, s.million.close())
	}
	return errors.Join(errs...)
}

// discardStorage stops all processes for rows of the storage after one of them has failed: the next
// measurement starts new ones.
func (d *driver) discardStorage() {
	if d.stage == nil {
		return
	}
	_ = d.stage.close() // the failure was reported already
	_ = os.RemoveAll(d.stage.dir)
	d.stage = nil
}

// measureStorage measures one system on one row of the storage.
func (d *driver) measureStorage(ctx context.Context, r *row, j job, system string, res *results) error {
	s, err := d.storageStage()
	if err != nil {
		return err
	}
	var f figures
	switch {
	case r.storage.work == memoryWork || r.storage.work == reopenWork:
		f, err = d.measureFilled(ctx, s, r, j)
	case system == redisSystem || system == redisPipelined:
		f, err = d.measureRedis(ctx, s, r, j, system)
	default:
		f, err = d.measureStorageCalls(ctx, s, r, j, system)
	}
	if err == nil {
		res.add(r.name, system, f)
	}
	return err
}

// measureStorageCalls has a process of callers call a storage in another process, or, of Pebble, in
// their own.
func (d *driver) measureStorageCalls(ctx context.Context, s *storageStage, r *row, j job, system string) (figures, error) {
	server, err := d.storageServer(ctx, s, r, system)
	if err != nil {
		return figures{}, err
	}
	client, err := d.storageClient(ctx, s, r, system, server)
	if err != nil {
		return figures{}, err
	}
	if _, err := client.ask(request{Op: "prepare", Job: j}); err != nil {
		return figures{}, err
	}
	all := []*process{client}
	if server != nil {
		all = append(all, server)
	}
	mallocs := func(op string) (sum uint64, err error) {
		for _, p := range all {
			used, err := p.ask(request{Op: op})
			if err != nil {
				return 0, err
			}
			sum += used.Usage.Mallocs
		}
		return sum, nil
	}
	before, err := mallocs("collect")
	if err != nil {
		return figures{}, err
	}
	cpu, err := cpuOfProcesses(all...)
	if err != nil {
		return figures{}, err
	}
	ran, err := client.ask(request{Op: "run"})
	if err != nil {
		return figures{}, err
	}
	cpuAfter, err := cpuOfProcesses(all...)
	if err != nil {
		return figures{}, err
	}
	after, err := mallocs("usage")
	if err != nil {
		return figures{}, err
	}
	o := ran.Outcome
	f := figures{value: r.value(o), p50: o.P50 / 1e3, p99: o.P99 / 1e3, cpu: float64((cpuAfter - cpu).Microseconds()) / float64(o.Ops)}
	if system != rueidisSystem { // redis-server's allocations are not known
		f.allocs = float64(after-before) / float64(o.Ops)
	}
	return f, nil
}

// cpuOfProcesses returns the CPU time that processes and their children have used, in steps of 10
// ms.
func cpuOfProcesses(ps ...*process) (time.Duration, error) {
	pids := make([]int, len(ps))
	for i, p := range ps {
		pids[i] = p.cmd.Process.Pid
	}
	return cpuOf(pids...)
}

// storageServer returns the process with a system's storage; nil if it is in the callers' process.
func (d *driver) storageServer(ctx context.Context, s *storageStage, r *row, system string) (*process, error) {
	durability := r.storage.durability
	switch system {
	case pebbleSystem:
		return nil, nil //nolint:nilnil // it has none
	case raylinkMemory:
		durability = storagev1.Durability_DURABILITY_MEMORY
	case redisSystem, redisPipelined, rueidisSystem:
		if err := findRedis(); err != nil {
			return nil, err
		}
		system = redisSystem // for all of them
	}
	key := system + " " + durability.String()
	if p := s.servers[key]; p != nil {
		return p, nil
	}
	if system != redisSystem {
		if err := d.startBrain(ctx); err != nil {
			return nil, err
		}
	}
	dir := filepath.Join(s.dir, fmt.Sprintf("%s-%d", system, durability))
	p, err := spawn(ctx, d.env(), storageServerRole, system, dir, durability.String())
	if err != nil {
		return nil, err
	}
	s.servers[key] = p
	return p, nil
}

// storageClient returns the process with the callers of a row.
func (d *driver) storageClient(ctx context.Context, s *storageStage, r *row, system string, server *process) (*process, error) {
	key := storageClientKey{system, r.storage}
	if p := s.clients[key]; p != nil {
		return p, nil
	}
	address := filepath.Join(s.dir, "pebble")
	if server != nil {
		address = server.address
	}
	p, err := spawn(ctx, d.env(), storageClientRole, system, string(r.storage.work), strconv.Itoa(r.storage.connections), address)
	if err != nil {
		return nil, err
	}
	s.clients[key] = p
	return p, nil
}
