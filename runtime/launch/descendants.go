package launch

import (
	"crypto/rand"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// What a node's code starts, a simulator or a data loader, ends with the node's process:
//
//   - A process that ends in good order ends it itself, before its goodbye ([EndDescendants]): by
//     SIGTERM, and what is there still after
//     descendantGrace by SIGKILL.
//   - When a process has ended in any way, the launcher kills what is left of it. That is the way
//     after kill -9 or a crash.
//
// Descendants are found by their process group, which is the launched process's own, and on Linux
// by a mark, which they inherit: a daemon that has left the group, its session and its parent has
// it still. The mark is in the environment and, for those that have cleared that, a soft limit
// (RLIMIT_RTTIME, so high that it is none). What has left the group, cleared its environment and
// set that limit by itself is found while its ancestors live. Elsewhere than on Linux the process
// group is all.
//
// Marks take no privileges and change nothing in the process that uses this package. A subreaper
// would: measured, each process that a command leaves in the background becomes a zombie of the
// subreaper when it ends (100 of 100), and a goroutine that reaps them takes the exit status of
// commands that the program's own code waits for (6 of 100 failed with "waitid: no child
// processes"). Cgroups belong to whoever manages the machine, and few processes may make any.
// PR_SET_PDEATHSIG follows the parent's thread, and is cleared by a fork.

// markVariable is the environment variable that holds the mark of the launched process that a
// process descends from.
const markVariable = "RAYLINK_PROCESS"

// descendantGrace is how long descendants have between SIGTERM and SIGKILL.
const descendantGrace = time.Second

// newMark makes the mark of a process to be launched.
func newMark() string { return rand.Text() }

// EndDescendants ends what this process, a launched one, and its descendants have started, launched
// processes of their own excepted. It returns when none of it is left, or can't be killed. It is
// for the end of the process.
func EndDescendants() {
	mark := os.Getenv(markVariable)
	if mark == "" || os.Getpid() != unix.Getpgrp() {
		return // this process was not launched: its group is not its own
	}
	find := func() []*os.Process { return descendants(os.Getpid(), mark) }
	found := find()
	if len(found) == 0 {
		return
	}
	signalAll(found, unix.SIGTERM)
	deadline := time.Now().Add(descendantGrace)
	for pause := time.Millisecond; time.Now().Before(deadline); pause = min(2*pause, 50*time.Millisecond) {
		time.Sleep(pause) //nolint:forbidigo // the end of processes of other parents is not told
		if found = find(); len(found) == 0 {
			return
		}
	}
	killAll(found, find)
}

// killAll kills what is found until nothing more is, for what is killed may have started something
// meanwhile.
func killAll(found []*os.Process, find func() []*os.Process) {
	const most = 100 // what is there still can't be killed
	for range most {
		if len(found) == 0 {
			return
		}
		signalAll(found, unix.SIGKILL)
		time.Sleep(time.Millisecond) //nolint:forbidigo // as above
		found = find()
	}
	release(found)
}

func signalAll(processes []*os.Process, signal os.Signal) {
	for _, p := range processes {
		_ = p.Signal(signal) // one that has ended meanwhile, or belongs to another user
	}
	release(processes)
}

func release(processes []*os.Process) {
	for _, p := range processes {
		_ = p.Release()
	}
}

// leftovers kills what dead processes have left. Requests that come while it is at work are served
// together: it looks at all processes of the machine.
type leftovers struct {
	mu sync.Mutex // held while at work

	asking sync.Mutex // guards all below
	marks  []string
	served chan struct{} // closed when marks have been served
}

//nolint:gochecknoglobals // the machine's processes are there once
var left leftovers

// kill kills what the dead process with the mark has left, outside of its process group, and
// returns when that is done.
func (l *leftovers) kill(mark string) {
	l.asking.Lock()
	l.marks = append(l.marks, mark)
	if l.served == nil {
		l.served = make(chan struct{})
	}
	served := l.served
	l.asking.Unlock()
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case <-served:
		return
	default:
	}
	l.asking.Lock()
	marks := l.marks
	l.marks, l.served = nil, nil
	l.asking.Unlock()
	find := func() []*os.Process { return marked(marks) }
	killAll(find(), find)
	close(served)
}

// markOf is the mark in an environment as it is in /proc; empty where there is none.
func markOf(environ string) string {
	for entry := range strings.SplitSeq(environ, "\x00") {
		if mark, ok := strings.CutPrefix(entry, markVariable+"="); ok {
			return mark
		}
	}
	return ""
}
