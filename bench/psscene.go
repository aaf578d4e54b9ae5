package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// scene is the processes of one system for rows of the parameter server: a pusher, and readers on
// the same machine or on others.
type scene struct {
	dir     string
	brain   *process
	pusher  *process
	readers []*process
	uplinks *uplinks // nil unless sending is limited
	// after is called when all processes have ended; nil for nothing.
	after func() error

	// number is that of the newest version, and warm the sizes that were pushed before.
	number uint64
	warm   map[int]bool
}

// layout is how the processes of a scene are placed. Rows with the same layout share scenes.
type layout string

const (
	oneMachine     layout = "one machine"     // the pusher and four readers
	pusherOnly     layout = "pusher only"     // one machine without readers
	remotePusher   layout = "remote pusher"   // a pusher without shared memory, one receiver
	threeNodes     layout = "three nodes"     // a reader on each of three machines, of which one is the pusher's
	manyMachines   layout = "many machines"   // a receiver on each of several other machines
	limitedUplinks layout = "limited uplinks" // the same, where each machine's sending side is limited
)

// oneMachineReaders is the number of readers on the pusher's machine.
const oneMachineReaders = 4

type sceneKey struct {
	system string
	layout layout
}

// scene returns a system's scene for a row. It starts the processes on first use.
func (d *driver) scene(ctx context.Context, system string, r *row) (*scene, error) {
	key := sceneKey{system, r.layout}
	if s := d.scenes[key]; s != nil {
		return s, nil
	}
	var s *scene
	var err error
	switch {
	case system == raySystem && r.layout == threeNodes:
		s, err = d.newRayClusterScene(ctx)
	case system == raySystem:
		s, err = d.newRayScene(ctx, r.job.Inflight)
	default:
		s, err = d.newScene(ctx, system, r)
	}
	if err != nil {
		return nil, err
	}
	s.warm = make(map[int]bool)
	d.scenes[key] = s
	return s, nil
}

// discardScene ends a scene: the next measurement starts a new one.
func (d *driver) discardScene(system string, l layout) error {
	key := sceneKey{system, l}
	s := d.scenes[key]
	delete(d.scenes, key)
	if s == nil {
		return nil
	}
	return s.close()
}

func (s *scene) close() error {
	var errs []error
	for _, p := range append([]*process{s.pusher}, append(s.readers, s.brain)...) {
		if p != nil {
			errs = append(errs, p.stop())
		}
	}
	if s.uplinks != nil {
		errs = append(errs, s.uplinks.close())
	}
	if s.after != nil {
		errs = append(errs, s.after())
	}
	return errors.Join(append(errs, os.RemoveAll(s.dir))...)
}

// cpu returns the CPU time that the scene's processes have used.
func (s *scene) cpu() (time.Duration, error) {
	var pids []int
	for _, p := range append([]*process{s.pusher, s.brain}, s.readers...) {
		if p != nil {
			pids = append(pids, p.cmd.Process.Pid)
		}
	}
	return cpuOf(pids...)
}

// sceneBuilder starts the processes of a scene.
type sceneBuilder struct {
	*scene

	driver *driver
	ctx    context.Context //nolint:containedctx // of one function
	// address is Brain's, under which all processes reach it.
	address string
	// err is the first error: nothing is started after it.
	err error
}

// home is the machine of the captain.
const home = "home"

func (d *driver) newScene(ctx context.Context, system string, r *row) (*scene, error) {
	if err := d.shareMemory(); err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(d.shared.dir, "")
	if err != nil {
		return nil, err
	}
	b := &sceneBuilder{scene: &scene{dir: dir}, driver: d, ctx: ctx}
	if r.layout == limitedUplinks {
		b.uplinks = newUplinks(ctx, r.job.BytesPerSecond)
	}
	switch system {
	case copySystem, mappedSystem, bareSystem:
		file := filepath.Join(dir, "memory")
		b.pusher = b.start(home, pusherRole, system, file)
		for range max(1, r.job.Inflight) {
			b.readers = append(b.readers, b.start(home, readerRole, system, file))
		}
	case tunnelSystem, oneHopSystem:
		b.tunnel(system, r)
	default:
		b.raylink(system, r)
	}
	if b.err != nil {
		return nil, errors.Join(b.err, b.close())
	}
	return b.scene, nil
}

// tunnel starts receivers, and a pusher that sends to all of them.
func (b *sceneBuilder) tunnel(system string, r *row) {
	b.startBrain()
	receivers := 1
	if system != oneHopSystem {
		receivers = max(receivers, r.job.Inflight)
	}
	words := []string{pusherRole, system}
	for i := range receivers {
		machine := "m" + strconv.Itoa(i)
		b.readers = append(b.readers, b.start(machine, readerRole, system, filepath.Join(b.dir, "memory"+machine), strconv.Itoa(r.job.Size)))
		b.hideSockets(machine)
		if b.err == nil {
			words = append(words, b.readers[i].address)
		}
	}
	b.pusher = b.start(home, words...)
}

// raylink starts a parameter server, and processes on the captain's machine or on others.
func (b *sceneBuilder) raylink(system string, r *row) {
	const captain = "ps-0"
	b.startBrain()
	switch r.layout {
	case oneMachine, pusherOnly:
		b.pusher = b.start(home, pusherRole, system, captain)
		for range oneMachineReaders {
			if r.layout == oneMachine {
				b.readers = append(b.readers, b.start(home, readerRole, system, captain))
			}
		}
	case remotePusher:
		b.readers = []*process{b.start(home, readerRole, system, captain)}
		b.hideSockets(home)
		b.pusher = b.start("elsewhere", pusherRole, system, captain, noOfficer)
	case manyMachines, threeNodes, limitedUplinks:
		path := captain
		if r.layout == limitedUplinks {
			// A captain in the pusher's process, because each machine must have one process: only
			// that process's address is known before it starts.
			path = ownCaptain
		}
		b.pusher = b.start(home, pusherRole, system, path)
		b.hideSockets(home)
		others := r.job.Inflight
		if r.layout == threeNodes { // the pusher's node is one of them
			others--
			b.readers = append(b.readers, b.start(home, readerRole, system, path))
		}
		for i := range others {
			machine := "m" + strconv.Itoa(i)
			if b.err == nil {
				b.readers = append(b.readers, b.start(machine, readerRole, system, b.pusher.address))
			}
			b.hideSockets(machine)
		}
	}
}

func (b *sceneBuilder) startBrain() {
	b.brain = b.start(home, "brain")
	if b.err == nil {
		b.address = b.brain.address
	}
}

// start starts a process on a machine. If sending is limited, the process gets an uplink.
func (b *sceneBuilder) start(machine string, words ...string) *process {
	if b.err != nil {
		return nil
	}
	env := append(b.driver.env(),
		// Without the warning that machines can't be reached which listen on loopback only.
		"RAYLINK_BRAIN="+b.address, "RAYLINK_MACHINE="+machine, "RAYLINK_LOG=error",
		"RAYLINK_RUNTIME_DIR="+filepath.Join(b.dir, machine), "RAYLINK_DATA="+filepath.Join(b.dir, "data-"+machine))
	started := func(int) {}
	if b.uplinks != nil {
		var up *uplink
		if up, b.err = b.uplinks.add(); b.err != nil {
			return nil
		}
		env = append(env, "RAYLINK_ADVERTISE="+up.address())
		started = func(pid int) { b.uplinks.started(up, pid) }
	}
	var p *process
	p, b.err = spawnNotified(b.ctx, env, started, words...)
	return p
}

// hideSockets hides the Unix sockets of a machine's processes, so that others connect by TCP, as
// processes of other machines do.
func (b *sceneBuilder) hideSockets(machine string) {
	if b.err != nil {
		return
	}
	sockets, err := filepath.Glob(filepath.Join(b.dir, machine, "*", "socket"))
	if err == nil && len(sockets) == 0 {
		err = fmt.Errorf("the processes of machine %s have no Unix sockets that could be hidden", machine)
	}
	for _, socket := range sockets {
		err = errors.Join(err, os.Rename(socket, socket+".hidden"))
	}
	b.err = err
}

// shareMemory makes the directory for shared memory on first use.
func (d *driver) shareMemory() error {
	if d.shared != nil {
		return nil
	}
	var err error
	d.shared, err = newSharedMemory()
	return err
}

// sharedMemory is a directory for parameters: in memory where that is possible. It is locked, so
// that a later run can remove what a killed one has left.
type sharedMemory struct {
	dir  string
	lock *os.File
}

const sharedPrefix = "raylink-bench-"

func newSharedMemory() (*sharedMemory, error) {
	parent := os.TempDir()
	if info, err := os.Stat("/dev/shm"); err == nil && info.IsDir() && unix.Access("/dev/shm", unix.W_OK) == nil {
		parent = "/dev/shm"
		removeAbandoned(parent)
	}
	return newSharedMemoryIn(parent)
}

func newSharedMemoryIn(parent string) (*sharedMemory, error) {
	dir, err := os.MkdirTemp(parent, sharedPrefix)
	if err != nil {
		return nil, err
	}
	lock, err := os.Open(dir)
	if err != nil {
		return nil, errors.Join(err, os.Remove(dir))
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return nil, errors.Join(err, lock.Close(), os.Remove(dir))
	}
	return &sharedMemory{dir: dir, lock: lock}, nil
}

func (m *sharedMemory) close() error { return errors.Join(os.RemoveAll(m.dir), m.lock.Close()) }

// removeAbandoned removes the directories of runs that were killed. Failing to is no reason not to
// measure.
func removeAbandoned(parent string) {
	entries, _ := os.ReadDir(parent)
	for _, entry := range entries {
		path := filepath.Join(parent, entry.Name())
		if !strings.HasPrefix(entry.Name(), sharedPrefix) {
			continue
		}
		dir, err := os.Open(path)
		if err != nil {
			continue
		}
		// One that was just made may not be locked yet, but it is still empty: it is not removed.
		if unix.Flock(int(dir.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			if made, _ := os.ReadDir(path); len(made) > 0 {
				_ = os.RemoveAll(path)
			}
		}
		_ = dir.Close()
	}
}
