package main

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// pusherPart is the entry of the pusher's process in the row about memory.
const pusherPart = "raylink-pusher"

// Rows of the parameter server that are compared.
const (
	pullSmall     = "ps/pull/1KiB"
	pullLarge     = "ps/pull/256MiB"
	pullReadLarge = "ps/pull+read/256MiB"
	pushLarge     = "ps/push/256MiB"
	pushRemote    = "ps/push/256MiB/remote"
	deliverMedium = "ps/deliver/32MiB/readers=4"
	deliverLarge  = "ps/deliver/256MiB/readers=4"
	pushMachines  = "ps/push/256MiB/officers=8"
	pushUplink    = "ps/push/32MiB/officers=8/uplink=20MBps"
	memoryLarge   = "ps/memory/256MiB"
)

// psRows are the rows of the parameter server. Each has rounds of its own if its processes take
// long to start.
func psRows() []row {
	const small, medium, large = 1 << 10, 32 << 20, 256 << 20
	const machines = 8
	return []row{
		{name: pullSmall, unit: "pulls/s", layout: oneMachine, job: job{Kind: psPull, Size: small}, systems: []string{"raylink"}},
		{name: pullLarge, unit: "pulls/s", layout: oneMachine, job: job{Kind: psPull, Size: large}, systems: []string{"raylink"}},
		{name: pullReadLarge, unit: "MB/s", layout: oneMachine, job: job{Kind: psPullRead, Size: large}, systems: []string{"raylink", mappedSystem}},
		{name: pushLarge, unit: "MB/s", layout: oneMachine, job: job{Kind: psPush, Size: large}, systems: []string{"raylink", copySystem}},
		{name: pushRemote, unit: "MB/s", layout: remotePusher, job: job{Kind: psPush, Size: large}, systems: []string{"raylink", tunnelSystem}},
		{
			name: deliverMedium, unit: "MB/s", layout: oneMachine, job: job{Kind: psDeliver, Size: medium, Inflight: oneMachineReaders},
			systems: []string{"raylink", raySystem, bareSystem},
		},
		{
			name: deliverLarge, unit: "MB/s", layout: oneMachine, job: job{Kind: psDeliver, Size: large, Inflight: oneMachineReaders},
			systems: []string{"raylink", raySystem, bareSystem},
		},
		{
			name: pushMachines, unit: "MB/s", layout: manyMachines, once: true, job: job{Kind: psSpread, Size: large, Inflight: machines},
			systems: []string{"raylink", tunnelSystem},
		},
		{
			name: pushUplink, unit: "MB/s", layout: limitedUplinks, once: true,
			job: job{Kind: psSpread, Size: medium, Inflight: machines, BytesPerSecond: 20e6}, systems: []string{"raylink", oneHopSystem},
		},
		{name: memoryLarge, unit: "sizes", layout: pusherOnly, once: true, job: job{Kind: psMemory, Size: large}, systems: []string{"raylink"}},
	}
}

const (
	// warmUps is the number of pushes of a size before a scene's first measurement: then there are
	// as many files, pages and buffers as there will be. Later measurements begin with one.
	warmUps = 6
	// warmUpTime is how long they are repeated at least: until then officers have moved their files
	// to large pages.
	warmUpTime = 3 * time.Second
	// machineWarmUps is the same where a push takes seconds: then officers have all of their files.
	machineWarmUps = 3
	// leastTimes is how often a measurement is repeated at least.
	leastTimes = 3
	// memoryPushes is the number of pushes after which memory is measured.
	memoryPushes = 20
)

// measureParameters measures one system on one row of the parameter server.
func (d *driver) measureParameters(ctx context.Context, r *row, j job, system string, res *results) (err error) {
	s, err := d.scene(ctx, system, r)
	if err != nil {
		return err
	}
	if r.once {
		defer func() { err = errors.Join(err, d.discardScene(system, r.layout)) }()
	}
	if j.Kind == psMemory {
		return s.measureMemory(r, j, system, res)
	}
	operation, end, err := s.operation(j, system)
	if err != nil {
		return err
	}
	f, err := s.repeat(r, j, operation)
	if err := errors.Join(err, end()); err != nil {
		return err
	}
	res.add(r.name, system, f)
	return nil
}

// repeat warms up, and repeats an operation that returns what it took.
func (s *scene) repeat(r *row, j job, operation func() (time.Duration, error)) (figures, error) {
	first := 1
	if !s.warm[j.Size] {
		s.warm[j.Size], first = true, warmUps
		if j.Kind == psSpread {
			first = machineWarmUps
		}
	}
	settled := time.Now()
	if first == warmUps {
		settled = settled.Add(warmUpTime)
	}
	for i := 0; i < first || time.Now().Before(settled); i++ {
		if _, err := operation(); err != nil {
			return figures{}, err
		}
	}
	h := new(histogram)
	var total time.Duration
	before, err := s.cpu()
	if err != nil {
		return figures{}, err
	}
	// What is timed can be a small part of an operation.
	for begun := time.Now(); h.total < leastTimes || total < j.Duration && time.Since(begun) < 2*j.Duration; {
		took, err := operation()
		if err != nil {
			return figures{}, err
		}
		h.record(int64(took))
		total += took
	}
	after, err := s.cpu()
	if err != nil {
		return figures{}, err
	}
	f := figures{value: float64(h.total) / total.Seconds(), p50: h.quantile(0.5) / 1e3, p99: h.quantile(0.99) / 1e3}
	if r.once {
		f.value = 1e6 / f.p50 // each time is a round
	}
	f.cpu = float64((after - before).Microseconds()) / float64(h.total)
	if r.unit == "MB/s" {
		f.value *= float64(j.Size) / 1e6
	}
	if j.Kind == psSpread && j.BytesPerSecond == 0 {
		f.value *= float64(j.Inflight) // what was delivered
	}
	return f, nil
}

// operation returns what is measured, and what must be called after the last time.
func (s *scene) operation(j job, system string) (operation func() (time.Duration, error), end func() error, err error) {
	nothing := func() error { return nil }
	switch j.Kind {
	case psPull, psPullRead:
		return func() (time.Duration, error) { return s.pull(j) }, nothing, nil
	case psPush:
		return func() (time.Duration, error) { return s.push(j, false) }, func() error { return s.verify(j) }, nil
	case psSpread:
		_, err := s.pusher.ask(request{Op: opOfficers, Job: j})
		return func() (time.Duration, error) { return s.push(j, true) }, func() error { return s.verify(j) }, err
	case psDeliver:
		switch system {
		case raySystem:
			return func() (time.Duration, error) { return s.asked(opDeliver, j, false) }, nothing, nil
		case bareSystem:
			return func() (time.Duration, error) { return s.deliverBare(j) }, nothing, nil
		default:
			return func() (time.Duration, error) { return s.deliver(j) }, s.unfollow, s.follow(j)
		}
	default:
		return nil, nil, fmt.Errorf("unknown kind of row of the parameter server: %q", j.Kind)
	}
}

// asked has the pusher make a new version, and returns what that took.
func (s *scene) asked(op string, j job, everywhere bool) (time.Duration, error) {
	s.number++
	res, err := s.pusher.ask(request{Op: op, Job: j, Stamp: s.number, Everywhere: everywhere})
	return res.Moment.Ended - res.Moment.Begun, err
}

func (s *scene) push(j job, everywhere bool) (time.Duration, error) {
	return s.asked(opPush, j, everywhere)
}

// pull has a new version made and pulled. What is timed is the pull and the release, and the
// reading in the row that measures it.
func (s *scene) pull(j job) (time.Duration, error) {
	if _, err := s.push(j, false); err != nil {
		return 0, err
	}
	res, err := s.readers[0].ask(request{Op: opPull, Job: j})
	if err != nil {
		return 0, err
	}
	if res.Stamp != s.number {
		return 0, fmt.Errorf("version %d was pulled after version %d had been pushed", res.Stamp, s.number)
	}
	took := res.Moment.Pull
	if j.Kind == psPullRead {
		took += res.Moment.Read
	}
	return took, nil
}

// follow has all readers read each new version as it comes.
func (s *scene) follow(j job) error {
	if _, err := s.push(j, false); err != nil {
		return err
	}
	for _, reader := range s.readers {
		if _, err := reader.ask(request{Op: opFollow, Job: j}); err != nil {
			return errors.Join(err, s.unfollow())
		}
	}
	return nil
}

func (s *scene) unfollow() error {
	errs := make([]error, len(s.readers))
	for i, reader := range s.readers {
		_, errs[i] = reader.ask(request{Op: opUnfollow})
	}
	return errors.Join(errs...)
}

// deliver has a new version made, and returns the time from the push's beginning until all readers
// have read it. The readers, which follow, are asked for it before the push, so that no request
// takes processor time meanwhile.
func (s *scene) deliver(j job) (time.Duration, error) {
	s.number++
	if err := s.askReaders(request{Op: opSeen, Stamp: s.number}); err != nil {
		return 0, err
	}
	pushed, err := s.pusher.ask(request{Op: opPush, Job: j, Stamp: s.number})
	if err != nil {
		return 0, err
	}
	return s.allRead(pushed)
}

// deliverBare is deliver to readers that do not follow: they are asked to read after the push.
func (s *scene) deliverBare(j job) (time.Duration, error) {
	s.number++
	pushed, err := s.pusher.ask(request{Op: opPush, Job: j, Stamp: s.number})
	if err != nil {
		return 0, err
	}
	if err := s.askReaders(request{Op: opPull, Job: j}); err != nil {
		return 0, err
	}
	return s.allRead(pushed)
}

func (s *scene) askReaders(r request) error {
	for _, reader := range s.readers {
		if err := reader.send(r); err != nil {
			return err
		}
	}
	return nil
}

// allRead waits for the responses of all readers, and returns the time from the push's beginning
// until the last of them had read.
func (s *scene) allRead(pushed response) (time.Duration, error) {
	var last time.Duration
	for _, reader := range s.readers {
		read, err := reader.receive()
		if err != nil {
			return 0, err
		}
		last = max(last, read.Moment.Ended)
	}
	return last - pushed.Moment.Begun, nil
}

// verify compares what all readers have with what the pusher has pushed last.
func (s *scene) verify(j job) error {
	pushed, err := s.pusher.ask(request{Op: opSum, Job: j})
	if err != nil {
		return err
	}
	for _, reader := range s.readers {
		got, err := reader.ask(request{Op: opSum, Job: j, Stamp: s.number})
		if err != nil {
			return err
		}
		if got.Checksum != pushed.Checksum {
			return fmt.Errorf("%s has other parameters than were pushed: their checksum is %x instead of %x", reader.what, got.Checksum, pushed.Checksum)
		}
	}
	return nil
}

// measureMemory measures the memory of a captain, its files and a pusher after some pushes, as a
// multiple of the parameters' size.
func (s *scene) measureMemory(r *row, j job, system string, res *results) error {
	for range memoryPushes {
		if _, err := s.push(j, false); err != nil {
			return err
		}
	}
	captain, err := s.pusher.ask(request{Op: opCaptain})
	if err != nil {
		return err
	}
	all, mapped, err := resident(captain.PID, s.dir)
	if err != nil {
		return err
	}
	files, err := stored(s.dir)
	if err != nil {
		return err
	}
	pushing, _, err := resident(s.pusher.cmd.Process.Pid, s.dir)
	if err != nil {
		return err
	}
	// A file counts once, whether the process has mapped it or not.
	res.add(r.name, system, figures{value: float64(all-mapped+files) / float64(j.Size)})
	res.add(r.name, pusherPart, figures{value: float64(pushing) / float64(j.Size)})
	return nil
}
