package launch

import (
	"crypto/rand"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Processes that a node's code starts, such as a simulator or a data loader, end with the node's
// process:
//
//   - A process that ends gracefully ends them itself before its goodbye ([EndDescendants]): by
//     SIGTERM, and those that are left after descendantGrace by SIGKILL.
//   - When a process has ended in any way, such as by kill -9 or a crash, its launcher kills those
//     that are left.
//
// Descendants are found by their process group, which the launched process leads, and on Linux by
// an inherited mark: a daemon that has left the group, its session and its parent still has it. The
// mark is in the environment and, for those that have cleared it, in a soft limit (RLIMIT_RTTIME,
// with a value so high that it limits nothing). A process that has left the group, cleared its
// environment and set that limit itself is found only while its ancestors live. On systems other
// than Linux only the process group is used.
//
// Marks need no privileges and do not change the process that uses this package. The alternatives
// do or are less reliable. With a subreaper, measured, each process that a command leaves in the
// background becomes a zombie of the subreaper when it ends (100 of 100), and a goroutine that
// reaps them takes the exit status of commands that the program's own code waits for (6 of 100
// failed with "waitid: no child processes"). Cgroups need the permission of the machine's
// administrator. PR_SET_PDEATHSIG follows the parent's thread, and is cleared by a fork.

// markVariable is the environment variable with the mark of the launched process that a process
// descends from.
const markVariable = "RAYLINK_PROCESS"

// descendantGrace is the time between SIGTERM and SIGKILL.
const descendantGrace = time.Second

// newMark makes the mark of a process to be launched.
func newMark() string { return rand.Text() }

// EndDescendants ends what this launched process and its descendants have started, except launched
// processes. It returns when all of that has ended or cannot be killed. It is for the end of the
// process.
func EndDescendants() {
	mark := os.Getenv(markVariable)
	if mark == "" || os.Getpid() != unix.Getpgrp() {
		return // not launched: the process group is not this process's own
	}
	find := func() []*os.Process { return descendants(os.Getpid(), mark) }
	found := find()
	if len(found) == 0 {
		return
	}
	signalAll(found, unix.SIGTERM)
	deadline := time.Now().Add(descendantGrace)
	for pause := time.Millisecond; time.Now().Before(deadline); pause = min(2*pause, 50*time.Millisecond) {
		time.Sleep(pause) //nolint:forbidigo // the end of other processes' children cannot be awaited
		if found = find(); len(found) == 0 {
			return
		}
	}
	killAll(found, find)
}

// killAll kills what is found, and repeats that until nothing is found: what was killed may have
// started further processes.
func killAll(found []*os.Process, find func() []*os.Process) {
	const most = 100 // what is left then cannot be killed
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
		_ = p.Signal(signal) // it may have ended, or belong to another user
	}
	release(processes)
}

func release(processes []*os.Process) {
	for _, p := range processes {
		_ = p.Release()
	}
}

// leftovers kills what dead processes have left behind. Since it scans all processes of the
// machine, requests that arrive during a scan share the next one.
type leftovers struct {
	mu sync.Mutex // held during a scan

	asking sync.Mutex // guards the fields below
	marks  []string
	served chan struct{} // closed when marks have been processed
}

//nolint:gochecknoglobals // the machine's processes are there once
var left leftovers

// kill kills the processes with the mark of a dead process that are outside of its process group.
// It blocks until that is done.
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

// markOf returns the mark in an environment in the format of /proc; empty if there is none.
func markOf(environ string) string {
	for entry := range strings.SplitSeq(environ, "\x00") {
		if mark, ok := strings.CutPrefix(entry, markVariable+"="); ok {
			return mark
		}
	}
	return ""
}
