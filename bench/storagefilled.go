package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Operations of a process with callers of `storage-0`. Each request has the row's job.
const (
	opFill   = "fill"   // stores the job's number of keys
	opHost   = "host"   // returns the id of the storage's process
	opAnswer = "answer" // waits until the storage answers, and says when it did
	opKeys   = "keys"   // checks some of the keys
)

// filledStorage is a Brain whose `storage-0`, in a process of its own, has many keys.
type filledStorage struct {
	brain, client *process
}

func (f *filledStorage) close() error {
	var errs []error
	for _, p := range []*process{f.client, f.brain} {
		if p != nil {
			errs = append(errs, p.stop())
		}
	}
	return errors.Join(errs...)
}

// filledStorage returns the storage with the row's number of keys.
func (d *driver) filledStorage(ctx context.Context, s *storageStage, r *row, j job) (*filledStorage, error) {
	if s.million != nil {
		return s.million, nil
	}
	f := &filledStorage{}
	s.million = f // closed with the stage, whatever happens
	dir := filepath.Join(s.dir, "filled")
	env := append(d.env(), "RAYLINK_BRAIN=", "RAYLINK_RUNTIME_DIR="+filepath.Join(dir, "h"), "RAYLINK_DATA="+filepath.Join(dir, "data"),
		"RAYLINK_LOG=error") // without the warning that a node was killed
	var err error
	if f.brain, err = spawn(ctx, env, "brain"); err != nil {
		return nil, err
	}
	env = append(env, "RAYLINK_BRAIN="+f.brain.address)
	if f.client, err = spawn(ctx, env, storageClientRole, "raylink", string(r.storage.work), "0", systemStorage); err != nil {
		return nil, err
	}
	_, err = f.client.ask(request{Op: opFill, Job: j})
	return f, err
}

// measureFilled measures the memory of the storage's process, or the time from its death until the
// storage answers again, with all of its keys.
func (d *driver) measureFilled(ctx context.Context, s *storageStage, r *row, j job) (figures, error) {
	f, err := d.filledStorage(ctx, s, r, j)
	if err != nil {
		return figures{}, err
	}
	host, err := f.client.ask(request{Op: opHost})
	if err != nil {
		return figures{}, err
	}
	if r.storage.work == memoryWork {
		bytes, err := settledMemory(ctx, host.PID)
		return figures{value: float64(bytes) / (1 << 20)}, err
	}
	begun, err := monotonic()
	if err != nil {
		return figures{}, err
	}
	if err := unix.Kill(host.PID, unix.SIGKILL); err != nil {
		return figures{}, fmt.Errorf("kill the storage's process %d: %w", host.PID, err)
	}
	answered, err := f.client.ask(request{Op: opAnswer, Job: j})
	if err != nil {
		return figures{}, err
	}
	if _, err := f.client.ask(request{Op: opKeys, Job: j}); err != nil {
		return figures{}, err
	}
	took := answered.Moment.Ended - begun
	return figures{value: took.Seconds(), p50: float64(took.Microseconds()), p99: float64(took.Microseconds())}, nil
}

// settledMemory has a process collect its garbage, and returns its private memory in bytes once
// that no longer falls.
func settledMemory(ctx context.Context, pid int) (uint64, error) {
	const (
		every   = 200 * time.Millisecond
		enough  = 5       // times without a noticeable fall
		notable = 1 << 20 // bytes
	)
	least, same := ^uint64(0), 0
	for same < enough {
		if err := unix.Kill(pid, collectSignal); err != nil {
			return 0, fmt.Errorf("ask process %d for a collection: %w", pid, err)
		}
		select {
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-time.After(every):
		}
		now, err := private(pid)
		if err != nil {
			return 0, err
		}
		same++
		if now+notable < least {
			same = 0
		}
		least = min(least, now)
	}
	return least, nil
}

// collectSignal makes a process in the role of Brain, or of one of its nodes, collect its garbage:
// nodes of Brain have no connection to the driver.
const collectSignal = unix.SIGUSR1

// collectOnSignal serves [collectSignal] until stop is called.
func collectOnSignal() (stop func()) {
	signals, done := make(chan os.Signal, 1), make(chan struct{})
	signal.Notify(signals, collectSignal)
	go func() {
		defer close(done)
		for range signals {
			runtime.GC()
			debug.FreeOSMemory()
		}
	}()
	return func() {
		signal.Stop(signals)
		close(signals)
		<-done
	}
}

// private returns how much memory of a process is resident and not shared with others, in bytes.
func private(pid int) (uint64, error) {
	file, err := os.Open(filepath.Join("/proc", strconv.Itoa(pid), "smaps_rollup"))
	if err != nil {
		return 0, err
	}
	defer file.Close() //nolint:errcheck // only read
	var sum uint64
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 2 || fields[0] != "Private_Clean:" && fields[0] != "Private_Dirty:" {
			continue
		}
		kilobytes, err := strconv.ParseUint(fields[1], 10, 64)
		if err != nil {
			return 0, fmt.Errorf("%s: %q: %w", file.Name(), lines.Text(), err)
		}
		sum += kilobytes << 10
	}
	return sum, lines.Err()
}
