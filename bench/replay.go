package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
)

// Systems in rows of the replay, beside raylink. Where nothing else is said, they are
// plain loops over a mapped file with as many rows of the same size.
const (
	// raylinkNone is RayLink's replay without areas; raylinkUniform samples it without a table.
	raylinkNone    = "raylink-none"
	raylinkUniform = "raylink-uniform"
	// copySystem makes one copy of each row; gatherSystem copies random rows; readSystem reads each
	// cache line of the rows once; plainSystem does what several processes do.
	gatherSystem = "gather"
	readSystem   = "read"
	plainSystem  = plainCalls
	// treeSystem is a sum tree in one process, without rows. The tunnel is a stream.
	treeSystem = "tree"
)

// replayPrefix is what names of rows of the replay begin with.
const replayPrefix = "replay/"

// Rows of the replay, all of which have a goal.
const (
	writeTiny     = "replay/write/64B"
	writeSmall    = "replay/write/1KiB"
	writeFrames   = "replay/write/28KiB"
	writeWarm     = "replay/write/1KiB/warm"
	writeAreas    = "replay/write/1KiB/areas=16"
	sampleSmall   = "replay/sample/256x1KiB"
	sampleMedium  = "replay/sample/256x3072B"
	borrowMillion = "replay/borrow/1000000rows"
	fourProcesses = "replay/processes/2w2r"

	prioritizedRows = "replay/prioritized/256x1KiB"
	prioritizedKeys = "replay/prioritized/256of10M"
	updatedKeys     = "replay/update/256of10M"
	manySequences   = "replay/sequences/10M"
	fewSequences    = "replay/sequences/10k"
	remoteWrite     = "replay/remote/write/1KiB"
	remoteSample    = "replay/remote/sample/256x1KiB"
)

const (
	// ringBytes and warmBytes are the sizes of rings, and of the files of peers.
	ringBytes = 1 << 30
	warmBytes = 64 << 20
	// heldAreas is the number of areas that another process holds in the row about them.
	heldAreas = 16
)

// replayLoad is the part of a row of the replay that a job does not have. A job's Inflight is the
// number of rows, items or keys of an operation.
type replayLoad struct {
	bytes int
	areas int
	// items is the number of items in a table, and length that of an item's rows.
	items, length int
	// remote means that clients can't map the ring.
	remote bool
}

// words are what replayLoadOf parses.
func (l replayLoad) words() []string {
	return []string{strconv.Itoa(l.bytes), strconv.Itoa(l.items), strconv.Itoa(l.length), strconv.FormatBool(l.remote)}
}

// replayLoadOf returns what an owner needs of a load.
func replayLoadOf(words []string) (replayLoad, error) {
	if len(words) != 4 {
		return replayLoad{}, fmt.Errorf("%d words describe a load: %q", len(words), words)
	}
	var l replayLoad
	var err [4]error
	l.bytes, err[0] = strconv.Atoi(words[0])
	l.items, err[1] = strconv.Atoi(words[1])
	l.length, err[2] = strconv.Atoi(words[2])
	l.remote, err[3] = strconv.ParseBool(words[3])
	return l, errors.Join(err[:]...)
}

// remote reports whether a process with this kind of load can't map the ring.
func (k kind) remote() bool { return k == replayRemoteWrite || k == replayRemoteSample }

func replayRows() []row {
	const cold = ringBytes
	million := replayLoad{bytes: cold, items: 1_000_000, length: 1}
	elsewhere := million
	elsewhere.remote = true
	sequences := replayLoad{bytes: cold, items: 10_000_000, length: 8}
	return []row{
		{
			name: writeTiny, unit: "rows/s", replay: replayLoad{bytes: cold}, job: job{Kind: replayWrite, Size: 64, Inflight: 64},
			systems: []string{"raylink", copySystem},
		},
		{
			name: writeSmall, unit: "rows/s", replay: replayLoad{bytes: cold}, job: job{Kind: replayWrite, Size: 1024, Inflight: 1},
			systems: []string{"raylink", copySystem},
		},
		{
			name: writeFrames, unit: "rows/s", replay: replayLoad{bytes: cold}, job: job{Kind: replayWrite, Size: 28672, Inflight: 1},
			systems: []string{"raylink", copySystem},
		},
		{
			name: writeWarm, unit: "rows/s", replay: replayLoad{bytes: warmBytes}, job: job{Kind: replayWrite, Size: 1024, Inflight: 1},
			systems: []string{"raylink", copySystem},
		},
		{
			name: writeAreas, unit: "rows/s", replay: replayLoad{bytes: cold, areas: heldAreas}, job: job{Kind: replayWrite, Size: 1024, Inflight: 1},
			systems: []string{"raylink", raylinkNone},
		},
		{
			name: sampleSmall, unit: "rows/s", replay: replayLoad{bytes: cold}, job: job{Kind: replaySample, Size: 1024, Inflight: 256},
			systems: []string{"raylink", gatherSystem},
		},
		{
			name: sampleMedium, unit: "rows/s", replay: replayLoad{bytes: cold}, job: job{Kind: replaySample, Size: 3072, Inflight: 256},
			systems: []string{"raylink", gatherSystem},
		},
		{
			name: borrowMillion, unit: "rows/s", replay: replayLoad{bytes: cold}, job: job{Kind: replayBorrow, Size: 1024, Inflight: 1000000},
			systems: []string{"raylink", readSystem},
		},
		{
			name: fourProcesses, unit: "rows/s", replay: replayLoad{bytes: cold}, job: job{Kind: replayMixed, Size: 1024, Inflight: 256},
			systems: []string{"raylink", plainSystem},
		},
		{
			name: prioritizedRows, unit: "rows/s", replay: million, job: job{Kind: replayItems, Size: 1024, Inflight: 256},
			systems: []string{"raylink", raylinkUniform},
		},
		{
			name: prioritizedKeys, unit: "draws/s", replay: sequences, job: job{Kind: replayDraw, Size: 64, Inflight: 256},
			systems: []string{"raylink", treeSystem},
		},
		{
			name: updatedKeys, unit: "updates/s", replay: sequences, job: job{Kind: replayUpdate, Size: 64, Inflight: 256},
			systems: []string{"raylink", treeSystem},
		},
		{
			name: manySequences, unit: "items/s", replay: sequences, job: job{Kind: replayItems, Size: 64, Inflight: 256},
			systems: []string{"raylink"},
		},
		{
			name: fewSequences, unit: "items/s", replay: sequences, job: job{Kind: replayFewItems, Size: 64, Inflight: 256},
			systems: []string{"raylink"},
		},
		{
			name: remoteWrite, unit: "MB/s", replay: replayLoad{bytes: cold, remote: true}, job: job{Kind: replayRemoteWrite, Size: 1024, Inflight: 1},
			systems: []string{"raylink", tunnelSystem},
		},
		{
			name: remoteSample, unit: "MB/s", replay: elsewhere, job: job{Kind: replayRemoteSample, Size: 1024, Inflight: 256},
			systems: []string{"raylink", tunnelSystem},
		},
	}
}

// replayStage is the processes for rows of the replay. They are started on first use.
type replayStage struct {
	dir     string
	owners  map[replayKey]*process
	clients map[replayKey][]*process
	holders []*process
}

// replayKey is what distinguishes rings, and the processes that use them.
type replayKey struct {
	load   replayLoad
	size   int
	kind   kind
	system string
}

func (d *driver) replayStage() (*replayStage, error) {
	if d.replays == nil {
		if err := d.shareMemory(); err != nil {
			return nil, err
		}
		dir, err := os.MkdirTemp(d.shared.dir, "replay-")
		if err != nil {
			return nil, err
		}
		d.replays = &replayStage{dir: dir, owners: make(map[replayKey]*process), clients: make(map[replayKey][]*process)}
	}
	return d.replays, nil
}

// close stops the processes, those of the rings last, and removes the files.
func (s *replayStage) close() error {
	var errs []error
	for _, ps := range s.clients {
		for _, p := range ps {
			errs = append(errs, p.stop())
		}
	}
	for _, p := range s.holders {
		errs = append(errs, p.stop())
	}
	for _, p := range s.owners {
		errs = append(errs, p.stop())
	}
	return errors.Join(append(errs, os.RemoveAll(s.dir))...)
}

// discardReplays stops all processes for rows of the replay after one of them has failed: the next
// measurement starts new ones.
func (d *driver) discardReplays() {
	if d.replays != nil {
		_ = d.replays.close() // the failure was reported already
		d.replays = nil
	}
}

// measureReplay measures one system on one row of the replay.
func (d *driver) measureReplay(ctx context.Context, r *row, j job, system string, res *results) error {
	s, err := d.replayStage()
	if err != nil {
		return err
	}
	clients, err := d.replayClients(ctx, s, r, system)
	if err != nil {
		return err
	}
	j.Kind = r.job.Kind // of the plain system it is that of plain calls
	var before uint64
	for _, p := range clients {
		if _, err := p.ask(request{Op: "prepare", Job: j}); err != nil {
			return err
		}
	}
	for _, p := range clients {
		used, err := p.ask(request{Op: "collect"})
		if err != nil {
			return err
		}
		before += used.Usage.Mallocs
	}
	cpu, err := cpuOfProcesses(clients...)
	if err != nil {
		return err
	}
	for _, p := range clients {
		if err := p.send(request{Op: "run"}); err != nil {
			return err
		}
	}
	var f figures
	var ops, after uint64
	for i, p := range clients {
		ran, err := p.receive()
		if err != nil {
			return err
		}
		o := ran.Outcome
		f.value += r.value(o)
		ops += o.Ops / uint64(j.Inflight)
		after += ran.Usage.Mallocs
		if i == 0 {
			f.p50, f.p99 = o.P50/1e3, o.P99/1e3
		}
	}
	cpuAfter, err := cpuOfProcesses(clients...)
	if err != nil {
		return err
	}
	f.cpu = float64((cpuAfter - cpu).Microseconds()) / float64(max(ops, 1))
	f.allocs = float64(after-before) / float64(max(ops, 1))
	res.add(r.name, system, f)
	return nil
}

// replayClients returns the processes that are measured.
func (d *driver) replayClients(ctx context.Context, s *replayStage, r *row, system string) ([]*process, error) {
	load, k := r.replay, r.job.Kind
	switch system {
	case raylinkRemote:
		load.remote, k = true, replayRemoteSample
		if r.job.Kind == replayWrite {
			k = replayRemoteWrite
		}
	case "raylink", raylinkUniform:
	case treeSystem:
		load = replayLoad{items: load.items} // one tree for draws and updates
	default:
		load.areas = 0
	}
	key := replayKey{load: load, size: r.job.Size, kind: r.job.Kind, system: system}
	if system == treeSystem {
		key.kind = ""
	}
	if ps := s.clients[key]; ps != nil {
		return ps, nil
	}
	if system == reverbSystem || system == cpprbSystem {
		p, err := d.bufferClient(ctx, s, r, system)
		if err != nil {
			return nil, err
		}
		s.clients[key] = []*process{p}
		return s.clients[key], nil
	}
	address, err := d.replayAddress(ctx, s, load, r.job.Size, system)
	if err != nil {
		return nil, err
	}
	if system == "raylink" && (r.job.Kind == replayDraw || r.job.Kind == replayUpdate) {
		// The table is used in its own process.
		return []*process{s.owners[replayKey{load: load, size: r.job.Size}]}, nil
	}
	kinds := []kind{k}
	if r.job.Kind == replayMixed {
		kinds = []kind{replayWrite, replayWrite, replaySample, replaySample}
	}
	for _, k := range kinds {
		p, err := d.replayProcess(ctx, replayClientRole, system, k, r.job.Size, address)
		if err != nil {
			return nil, err
		}
		s.clients[key] = append(s.clients[key], p)
	}
	return s.clients[key], nil
}

// replayProcess starts a process that uses a ring or a peer's file.
func (d *driver) replayProcess(ctx context.Context, role, system string, k kind, size int, address string) (*process, error) {
	return spawn(ctx, d.env(), role, system, string(k), strconv.Itoa(size), address)
}

// replayAddress returns the path of a replay, or of a peer's node or file; of a tree, its size.
func (d *driver) replayAddress(ctx context.Context, s *replayStage, load replayLoad, size int, system string) (string, error) {
	key, path := replayKey{load: load, size: size}, s.dir
	words := []string{replayOwnerRole, "raylink", strconv.Itoa(size)}
	switch system {
	case "raylink", raylinkNone, raylinkUniform, raylinkRemote:
	case treeSystem:
		return strconv.Itoa(load.items), nil
	default:
		path = filepath.Join(s.dir, fmt.Sprintf("peer-%d-%d", load.bytes, size))
		file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			return "", err
		}
		err = errors.Join(file.Truncate(int64(load.bytes/size*size)), file.Close())
		if err != nil || system != tunnelSystem {
			return path, err
		}
		key.system, words[1] = system, system
		key.load = replayLoad{bytes: load.bytes} // one for both directions
	}
	if p := s.owners[key]; p != nil {
		return p.address, nil
	}
	if err := d.startBrain(ctx); err != nil {
		return "", err
	}
	p, err := spawn(ctx, d.env(), slices.Concat(words, []string{path}, load.words())...)
	if err != nil {
		return "", err
	}
	s.owners[key] = p
	if load.areas > 0 {
		holder, err := d.replayProcess(ctx, replayClientRole, "raylink", replayHold, size, p.address)
		if err != nil {
			return "", err
		}
		s.holders = append(s.holders, holder)
		if _, err := holder.ask(request{Op: "prepare", Job: job{Kind: replayHold, Size: size, Inflight: load.areas}}); err != nil {
			return "", err
		}
	}
	return p.address, nil
}
