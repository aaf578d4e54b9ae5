package ps

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect/v2"
	"golang.org/x/sys/unix"

	nodev1 "github.com/raylink/raylink/gen/raylink/node/v1"
	psv1 "github.com/raylink/raylink/gen/raylink/ps/v1"
	"github.com/raylink/raylink/gen/raylink/ps/v1/psv1raylink"
	"github.com/raylink/raylink/internal/backoff"
	"github.com/raylink/raylink/runtime"
	"github.com/raylink/raylink/runtime/rundir"
	"github.com/raylink/raylink/services/ps/store"
)

// copies are the copies that this process hosts, by the nid of their captain. A copy outlives its
// officer node: the captain's death ends the node, and the next incarnation gets another node for
// the same copy.
type copies struct {
	mu sync.Mutex // guards of
	of map[string][]*officer
}

var hostedCopies = copies{of: make(map[string][]*officer)} //nolint:gochecknoglobals // a process's nodes share it

// add adds a copy, and returns a function that removes it.
func (h *copies) add(captainNID string, o *officer) (release func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.of[captainNID] = append(h.of[captainNID], o)
	return func() { h.remove(captainNID, o) }
}

func (h *copies) remove(captainNID string, o *officer) {
	h.mu.Lock()
	defer h.mu.Unlock()
	kept := h.of[captainNID][:0]
	for _, x := range h.of[captainNID] {
		if x != o {
			kept = append(kept, x)
		}
	}
	if h.of[captainNID] = kept; len(kept) == 0 {
		delete(h.of, captainNID)
	}
}

// get returns the copy of a machine, or nil.
func (h *copies) get(captainNID, machine string) *officer {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, o := range h.of[captainNID] {
		if o.machine == machine {
			return o
		}
	}
	return nil
}

// hostings are the machines' officers that clients of this process host or wait to host, by the nid
// of their captain.
type hostings struct {
	mu sync.Mutex // guards of
	of map[string]*hosting
}

var processHostings = hostings{of: make(map[string]*hosting)} //nolint:gochecknoglobals // one for each process and captain

// hosting ensures that this process's machine has an officer of a captain: the process of the
// machine that holds a file lock hosts it, and another when that process dies.
type hosting struct {
	clients int // guarded by the hostings' mu
	cancel  context.CancelFunc
	ended   chan struct{}
}

// join begins a hosting, or joins the one of another client. The returned function leaves it; the
// hosting ends with its last client.
func (h *hostings) join(captain *psv1raylink.Captain, machine string, config *psv1.CaptainConfig) (leave func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	key := captain.Ref().NID() + " " + machine
	k, ok := h.of[key]
	if !ok {
		ctx, cancel := context.WithCancel(context.Background())
		k = &hosting{cancel: cancel, ended: make(chan struct{})}
		h.of[key] = k
		go func() {
			defer close(k.ended)
			k.run(ctx, captain, machine, config)
		}()
	}
	k.clients++
	return sync.OnceFunc(func() {
		h.mu.Lock()
		k.clients--
		last := k.clients == 0
		if last {
			delete(h.of, key)
		}
		h.mu.Unlock()
		if last {
			k.cancel()
			<-k.ended
		}
	})
}

// run hosts the officer, until ctx ends or the captain has ended for good.
func (k *hosting) run(ctx context.Context, captain *psv1raylink.Captain, machine string, config *psv1.CaptainConfig) {
	held, err := claimCopy(ctx, captain.Ref().NID(), machine)
	if err != nil {
		if ctx.Err() == nil {
			slog.Warn("this process can't host its machine's officer", slog.Any("error", err))
		}
		return
	}
	// The last process of the machine removes the files; until then the next one takes them over.
	defer func() { _ = held.release(true) }()
	pause := backoff.Backoff{First: firstPause, Max: maxPause}
	for ctx.Err() == nil && !endedForGood(captain.Ref()) {
		began := time.Now()
		err := k.serve(ctx, captain, &psv1.OfficerConfig{
			Captain: config, Machine: machine, CaptainRef: captain.Ref().NodeRef(), Directory: held.previous,
		})
		if errors.Is(err, runtime.ErrClosed) {
			return // the process's runtime was closed before its client
		}
		if err != nil && ctx.Err() == nil {
			slog.Debug("this machine has no officer at present", slog.String("captain", captain.Ref().Path()), slog.Any("error", err))
		}
		if time.Since(began) > maxPause {
			pause.Reset()
		}
		if pause.Wait(ctx) != nil {
			return
		}
	}
}

// claim is the right of this process to host a machine's officer, and its copy. No other process
// has it.
type claim struct {
	captainNID, machine string
	// others is locked by all processes that host the officer or wait for that.
	others *os.File
	lock   *rundir.Lock
	// previous is the directory of the process that had the claim before and has died, or empty.
	previous string
}

// claimCopy waits for the claim.
func claimCopy(ctx context.Context, captainNID, machine string) (*claim, error) {
	name := copyName(captainNID, machine)
	path, err := copyRecord(name)
	if err != nil {
		return nil, err
	}
	others, err := shareLock(name)
	if err != nil {
		return nil, err
	}
	lock, err := rundir.AcquireLock(ctx, path)
	if err != nil {
		unshare(others)
		return nil, err
	}
	return &claim{captainNID: captainNID, machine: machine, others: others, lock: lock, previous: previousDirectory(path)}, nil
}

// release closes the copy, if this process has opened it, and gives the claim to the next process
// that waits. If remove is set and none waits, the files are removed.
func (c *claim) release(remove bool) error {
	defer unshare(c.others)
	var err error
	if o := hostedCopies.get(c.captainNID, c.machine); o != nil {
		hostedCopies.remove(c.captainNID, o)
		err = o.close(remove && isAlone(c.others))
	}
	return errors.Join(err, c.lock.Release())
}

// claimWait bounds how long a process that was started for an officer waits for the claim: the one
// of the officer before may be about to end.
const claimWait = 2 * time.Second

// claimForNode is claimCopy for an officer in a process of its own. The claim ends with the node.
func claimForNode(ctx context.Context, self *runtime.Node, captain runtime.Ref, machine string) (*claim, error) {
	wait, cancel := context.WithTimeout(ctx, claimWait)
	defer cancel()
	held, err := claimCopy(wait, captain.NID(), machine)
	if err != nil && ctx.Err() == nil && wait.Err() != nil {
		return nil, connect.Errorf(connect.CodeAlreadyExists, "another process hosts the officer of machine %s", machine).WithCause(err)
	}
	if err != nil {
		return nil, err
	}
	self.OnStop(func(context.Context) error {
		// The next incarnation of a captain that restarts creates an officer for the same files.
		return held.release(!captain.Record().GetRestarts())
	})
	return held, nil
}

// copyRecord returns the path of the file that names the directory of a machine's copy, for the
// process that takes it over. It is also the lock of the process that hosts the copy.
func copyRecord(name string) (string, error) { return rundir.LockPath("", "officer-"+name) }

// recordDirectory writes the directory of a copy to its record. It is called before the directory
// has any file: the next process finds the files whenever this one dies.
func recordDirectory(name, directory string) error {
	path, err := copyRecord(name)
	if err != nil {
		return err
	}
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	// One write, without truncation: a process that is killed leaves the old path or the new one.
	_, err = file.WriteString(directory + "\x00")
	return errors.Join(err, file.Close())
}

// previousDirectory returns the directory in a record if it is still there, else "".
func previousDirectory(record string) string {
	text, err := os.ReadFile(record)
	if err != nil {
		return ""
	}
	directory, _, complete := strings.Cut(string(text), "\x00")
	if !complete || !filepath.IsAbs(directory) {
		return ""
	}
	if info, err := os.Stat(directory); err != nil || !info.IsDir() { //nolint:gosec // only this user can write the record
		return ""
	}
	return directory
}

// copyName names a machine's copy of a captain's parameters: its directory and its locks.
func copyName(captainNID, machine string) string { return captainNID + "-" + machine }

// shareLock locks a copy's file of clients, together with other processes that may host its
// officer. The copy's files are removed only if no process has locked it: another could be about to
// take them over.
func shareLock(name string) (*os.File, error) {
	path, err := rundir.LockPath("", "officer-"+name+"-clients")
	if err != nil {
		return nil, err
	}
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(file.Fd()), unix.LOCK_SH); err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", path, err), file.Close())
	}
	return file, nil
}

// unshare releases the lock at once, even if a process is being started, which has a copy of the
// descriptor until it runs its program.
func unshare(file *os.File) {
	_ = unix.Flock(int(file.Fd()), unix.LOCK_UN)
	_ = file.Close()
}

// removeUnused removes a copy's files, unless a process may take them over.
func removeUnused(directory string) error {
	file, err := shareLock(filepath.Base(directory))
	if err != nil {
		return err
	}
	defer unshare(file)
	if !isAlone(file) {
		return nil
	}
	return store.RemoveOrphan(directory)
}

// isAlone reports whether no other process has locked the file.
func isAlone(file *os.File) bool { return unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil }

// serve hosts the officer below the captain's present incarnation, until one of them ends.
func (k *hosting) serve(ctx context.Context, captain *psv1raylink.Captain, config *psv1.OfficerConfig) error {
	node, err := psv1raylink.CreateOfficer(ctx, captain.Ref(), config, runtime.Here())
	if err != nil {
		return err
	}
	// The node ends with the incarnation of the captain that it was created below: the next one
	// gets another node.
	lives, end := context.WithCancel(ctx)
	var waiting sync.WaitGroup
	waiting.Go(func() {
		defer end()
		_ = captain.Ref().Ended(lives)
	})
	err = node.Ref().Ended(lives)
	end()
	waiting.Wait()
	if err == nil {
		return nil
	}
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
	defer cancel()
	return errors.Join(ctx.Err(), node.Ref().Stop(stop))
}

// stopTimeout bounds how long the officer of a process whose clients are closed may take to stop.
const stopTimeout = 5 * time.Second

// endedForGood reports whether a node has ended, or is stopping, and is not started again.
func endedForGood(ref runtime.Ref) bool {
	rec := ref.Record()
	ended := rec.GetState() == nodev1.NodeState_NODE_STATE_DEAD || rec.GetState() == nodev1.NodeState_NODE_STATE_STOPPING
	return ended && !rec.GetRestarts()
}

// SweepFiles removes the parameter files in a data directory that processes left when they were
// killed. It spares those of captains that are started again.
func SweepFiles(data string) error {
	folder := filepath.Join(data, parametersFolder)
	entries, err := os.ReadDir(folder)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("sweep parameter files: %w", err)
	}
	var errs []error
	for _, entry := range entries {
		directory := filepath.Join(folder, entry.Name())
		if _, err := os.Stat(filepath.Join(directory, keepFile)); err == nil || !entry.IsDir() {
			continue
		}
		err := removeUnused(directory)
		if err != nil && !errors.Is(err, store.ErrInUse) && !errors.Is(err, store.ErrUnsupported) {
			errs = append(errs, fmt.Errorf("sweep parameter files: %w", err))
		}
	}
	return errors.Join(errs...)
}
