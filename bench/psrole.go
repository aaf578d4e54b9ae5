package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Roles of the processes in rows of the parameter server. They are followed by a system, and by
// words for that system.
const (
	pusherRole = "ps-pusher"
	readerRole = "ps-reader"
)

// Operations of these processes. Each request has the row's job.
const (
	opPush     = "push"     // of a pusher: makes a new version
	opPull     = "pull"     // of a reader: pulls, reads and releases the newest version
	opFollow   = "follow"   // of a reader: begins to read each new version as it comes
	opSeen     = "seen"     // of a reader that follows: waits until it has read a version
	opUnfollow = "unfollow" // of a reader: ends opFollow
	opSum      = "sum"      // waits for a version, and computes its checksum; of a pusher: its own
	opCaptain  = "captain"  // of a pusher: returns the id of the captain's process
	opOfficers = "officers" // of a pusher: waits until the job's number of other machines take part
)

// cacheLine is the distance of the bytes that are read of parameters.
const cacheLine = 64

// stampBytes is the size of the version number at the beginning and at the end of parameters. Each
// version of a row differs by it, and readers check that both agree.
const stampBytes = 8

// pushDeadline bounds a push, and how long a reader waits for a version.
const pushDeadline = time.Minute

// pusher makes versions of parameters.
type pusher interface {
	// push makes parameters the newest version of their size. It returns once the version is
	// kept, or, if everywhere is set, once all receivers have it. The caller may modify the
	// parameters afterwards.
	push(ctx context.Context, parameters []byte, everywhere bool) error
	close() error
}

// reader reads the newest version of parameters.
type reader interface {
	// pull returns the newest version of a size, and a function that must be called when the
	// reader is done with it.
	pull(ctx context.Context, size int) (parameters []byte, release func() error, err error)
	close() error
}

// follower is a reader that can wait for versions.
type follower interface {
	// follow calls read with each new version, which may be superseded by then, until the context
	// ends. Versions that come while read runs may be skipped.
	follow(ctx context.Context, size int, read func(parameters []byte) error) error
}

// psSystem is one implementation of a parameter server, or a baseline. The words are those that the
// driver has given to the process; the address is passed to processes that start later.
type psSystem struct {
	name   string
	pusher func(ctx context.Context, words []string) (p pusher, address string, err error)
	reader func(ctx context.Context, words []string) (r reader, address string, err error)
}

func psSystems() []psSystem {
	return []psSystem{
		{name: "raylink", pusher: newRaylinkPusher, reader: newRaylinkReader},
		{name: mappedSystem, pusher: newCopyPusher, reader: newCopyReader},
		{name: copySystem, pusher: newCopyPusher, reader: newCopyReader},
		{name: bareSystem, pusher: newBarePusher, reader: newCopyReader},
		{name: tunnelSystem, pusher: newTunnelPusher, reader: newTunnelReceiver},
		{name: oneHopSystem, pusher: newTunnelPusher, reader: newTunnelReceiver},
	}
}

func psSystemNamed(name string) (psSystem, error) {
	for _, s := range psSystems() {
		if s.name == name {
			return s, nil
		}
	}
	return psSystem{}, fmt.Errorf("unknown system %q of the parameter server", name)
}

// monotonic returns the time of a clock that all processes of a machine share.
func monotonic() (time.Duration, error) {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &t); err != nil {
		return 0, fmt.Errorf("read the monotonic clock: %w", err)
	}
	return time.Duration(t.Nano()), nil
}

// stamp writes a version's number into parameters.
func stamp(parameters []byte, number uint64) {
	binary.LittleEndian.PutUint64(parameters, number)
	binary.LittleEndian.PutUint64(parameters[len(parameters)-stampBytes:], number)
}

// errTorn means that parameters are not of one version.
var errTorn = errors.New("the parameters are a mixture of two versions")

// stampOf returns the version's number in parameters.
func stampOf(parameters []byte, size int) (uint64, error) {
	if len(parameters) != size {
		return 0, fmt.Errorf("the parameters have %d bytes instead of %d", len(parameters), size)
	}
	number := binary.LittleEndian.Uint64(parameters)
	if last := binary.LittleEndian.Uint64(parameters[size-stampBytes:]); last != number {
		return 0, fmt.Errorf("%w: they begin with %d and end with %d", errTorn, number, last)
	}
	return number, nil
}

// touched keeps the compiler from removing the reads.
var touched atomic.Uint64 //nolint:gochecknoglobals // written only

// touch reads each cache line.
func touch(parameters []byte) {
	var sum uint64
	for i := 0; i < len(parameters); i += cacheLine {
		sum += uint64(parameters[i])
	}
	touched.Store(sum)
}

// psRole runs a process that takes part in rows of the parameter server.
func (c *driverConn) psRole(ctx context.Context, role, name string, words []string) error {
	s, err := psSystemNamed(name)
	if err != nil {
		return c.reportError(err)
	}
	if role == pusherRole {
		p, address, err := s.pusher(ctx, words)
		if err != nil {
			return c.reportError(err)
		}
		w := &pushing{pusher: p}
		return errors.Join(c.answer(response{Address: address}, w.do), p.close())
	}
	r, address, err := s.reader(ctx, words)
	if err != nil {
		return c.reportError(err)
	}
	w := &reading{reader: r}
	err = c.answer(response{Address: address}, w.do)
	w.unfollow()
	return errors.Join(err, r.close())
}

// pushing is the state of a pusher's process.
type pushing struct {
	pusher     pusher
	parameters []byte
}

func (w *pushing) do(r request) (response, error) {
	switch r.Op {
	case opPush:
		return w.push(r)
	case opSum:
		return response{Checksum: checksum(w.parameters)}, nil
	case opCaptain:
		if c, ok := w.pusher.(interface{ captainPID() (int, error) }); ok {
			pid, err := c.captainPID()
			return response{PID: pid}, err
		}
	case opOfficers:
		if c, ok := w.pusher.(interface{ awaitMachines(n int) error }); ok {
			return response{}, c.awaitMachines(r.Job.Inflight)
		}
		return response{}, nil // has all of them from the start
	}
	return response{}, fmt.Errorf("the pusher does not support %q", r.Op)
}

// push pushes a version with the number that the request gives it. The outcome says when the push
// began and ended.
func (w *pushing) push(r request) (response, error) {
	if len(w.parameters) != r.Job.Size {
		w.parameters = make([]byte, r.Job.Size)
		for i := range w.parameters {
			w.parameters[i] = byte(i*31 + i>>10)
		}
	}
	stamp(w.parameters, r.Stamp)
	begun, err := monotonic()
	if err != nil {
		return response{}, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), pushDeadline)
	defer cancel()
	if err := w.pusher.push(ctx, w.parameters, r.Everywhere); err != nil {
		return response{}, fmt.Errorf("push version %d of %d bytes: %w", r.Stamp, r.Job.Size, err)
	}
	ended, err := monotonic()
	return response{Moment: moment{Begun: begun, Ended: ended}}, err
}

// reading is the state of a reader's process.
type reading struct {
	reader reader
	// following is nil unless the process follows.
	following *following
}

// following reads each new version in the background.
type following struct {
	cancel context.CancelFunc
	done   chan struct{} // closed when it has ended

	mu      sync.Mutex // guards the fields below
	number  uint64     // of the newest version that was read
	read    time.Duration
	err     error
	changed chan struct{} // closed at the next change
}

func (w *reading) do(r request) (response, error) {
	ctx, cancel := context.WithTimeout(context.Background(), pushDeadline)
	defer cancel()
	switch r.Op {
	case opPull:
		return w.pull(ctx, r.Job.Size)
	case opFollow:
		return response{}, w.follow(r.Job.Size)
	case opSeen:
		return w.seen(ctx, r.Stamp)
	case opUnfollow:
		w.unfollow()
		return response{}, nil
	case opSum:
		return w.sum(ctx, r)
	}
	return response{}, fmt.Errorf("a reader does not support %q", r.Op)
}

// pull pulls, reads and releases once. The outcome has the time for the pull, and the time for
// reading and the release.
func (w *reading) pull(ctx context.Context, size int) (response, error) {
	begun := time.Now()
	parameters, release, err := w.reader.pull(ctx, size)
	pulled := time.Now()
	if err != nil {
		return response{}, err
	}
	touch(parameters)
	read := time.Now()
	number, err := stampOf(parameters, size)
	checked := time.Now()
	if err := errors.Join(err, release()); err != nil {
		return response{}, err
	}
	m := moment{Pull: pulled.Sub(begun), Read: read.Sub(pulled) + time.Since(checked)}
	m.Ended, err = monotonic()
	return response{Moment: m, Stamp: number}, err
}

// sum waits for a version, or a later one, and returns its checksum.
func (w *reading) sum(ctx context.Context, r request) (response, error) {
	for {
		parameters, release, err := w.reader.pull(ctx, r.Job.Size)
		if err != nil {
			return response{}, err
		}
		number, err := stampOf(parameters, r.Job.Size)
		sum := checksum(parameters)
		if err := errors.Join(err, release()); err != nil {
			return response{}, err
		}
		if number >= r.Stamp {
			return response{Stamp: number, Checksum: sum}, nil
		}
		select {
		case <-ctx.Done():
			return response{}, fmt.Errorf("version %d has not come, only %d: %w", r.Stamp, number, ctx.Err())
		case <-time.After(time.Millisecond):
		}
	}
}

func (w *reading) follow(size int) error {
	of, ok := w.reader.(follower)
	if !ok {
		return errors.New("the reader of this system can't follow")
	}
	if w.following != nil {
		return errors.New("the reader already follows")
	}
	ctx, cancel := context.WithCancel(context.Background())
	f := &following{cancel: cancel, done: make(chan struct{}), changed: make(chan struct{})}
	w.following = f
	go func() {
		defer close(f.done)
		err := of.follow(ctx, size, func(parameters []byte) error {
			touch(parameters)
			read, err := monotonic()
			if err != nil {
				return err
			}
			number, err := stampOf(parameters, size)
			f.set(number, read, nil)
			return err
		})
		if ctx.Err() == nil {
			f.set(0, 0, errors.Join(errors.New("following has ended"), err))
		}
	}()
	return nil
}

// set records that a version was read, or that following failed.
func (f *following) set(number uint64, read time.Duration, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.err = errors.Join(f.err, err)
	if number > f.number {
		f.number, f.read = number, read
	}
	close(f.changed)
	f.changed = make(chan struct{})
}

// seen waits until a version was read. The outcome says when.
func (w *reading) seen(ctx context.Context, number uint64) (response, error) {
	f := w.following
	if f == nil {
		return response{}, errors.New("the reader does not follow")
	}
	for {
		f.mu.Lock()
		have, read, err, changed := f.number, f.read, f.err, f.changed
		f.mu.Unlock()
		if err != nil || have >= number {
			return response{Moment: moment{Ended: read}, Stamp: have}, err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return response{}, fmt.Errorf("version %d has not come, only %d: %w", number, have, ctx.Err())
		}
	}
}

func (w *reading) unfollow() {
	if w.following == nil {
		return
	}
	w.following.cancel()
	<-w.following.done
	w.following = nil
}
