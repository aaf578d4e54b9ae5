package launch

import (
	"bytes"
	"errors"
	"hash/fnv"
	"io"
	"os"
	"slices"
	"strconv"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// maxEnviron bounds how much of a process's environment is read. The kernel limits it to a quarter
// of the stack's limit.
const maxEnviron = 8 << 20

// awaitExit blocks until a child of this process has ended, and leaves it a zombie: its id, and
// with it the id of its process group, remains in use.
func awaitExit(pid int) {
	for {
		var info unix.Siginfo
		err := unix.Waitid(unix.P_PID, pid, &info, unix.WEXITED|unix.WNOWAIT, nil)
		if !errors.Is(err, unix.EINTR) {
			return
		}
	}
}

// limitOf encodes a mark as a soft limit RLIMIT_RTTIME. That is how many microseconds of CPU a
// real-time thread may use without a break; values between 2^62 and 2^63 limit nothing.
func limitOf(mark string) uint64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(mark)) // never fails
	return 1<<62 | h.Sum64()>>2
}

// isMarked reports whether a soft limit encodes a mark.
func isMarked(limit uint64) bool { return limit>>62 == 1 }

// markSelf sets this process's mark as a limit too, which descendants inherit whatever they do to
// their environment. A limit that is in use is left unchanged.
func markSelf() {
	mark := os.Getenv(markVariable)
	var limit unix.Rlimit
	if mark == "" || unix.Prlimit(0, unix.RLIMIT_RTTIME, nil, &limit) != nil || limit.Max != unix.RLIM_INFINITY ||
		limit.Cur != unix.RLIM_INFINITY && !isMarked(limit.Cur) {
		return
	}
	if isMarked(limit.Cur) {
		inheritedLimit.Store(limit.Cur)
	}
	limit.Cur = limitOf(mark)
	_ = unix.Prlimit(0, unix.RLIMIT_RTTIME, &limit, nil) // on failure the mark is in the environment only
}

// inheritedLimit is the limit that this process had before it set its own, if that encodes a mark:
// its launcher's. What this process has started before then has that one.
var inheritedLimit atomic.Uint64 //nolint:gochecknoglobals // a process has one

// isForeign reports whether a process has the limit of another launched process than those whose
// limits are given. It takes one system call, and then nothing else about the process need be read:
// that is what makes the end of many processes at once affordable, each of which scans all.
func isForeign(pid int, limits ...uint64) bool {
	limit := limitMarkOf(pid)
	return limit != 0 && limit != inheritedLimit.Load() && !slices.Contains(limits, limit)
}

// limitMarkOf is the limit of a process if it encodes a mark, or else 0.
func limitMarkOf(pid int) uint64 {
	var limit unix.Rlimit
	if unix.Prlimit(pid, unix.RLIMIT_RTTIME, nil, &limit) != nil || !isMarked(limit.Cur) {
		return 0
	}
	return limit.Cur
}

// marked finds the processes with one of the marks in their environment, or in their limit if the
// environment has none.
func marked(marks []string) []*os.Process {
	limits := make([]uint64, len(marks))
	for i, mark := range marks {
		limits[i] = limitOf(mark)
	}
	// A process whose launcher has not set its own limit yet has that of this process.
	possible := append(slices.Clone(limits), limitMarkOf(os.Getpid()))
	var found []*os.Process
	for _, pid := range processes() {
		if isForeign(pid, possible...) {
			continue
		}
		// The handle is opened before the check, so that the process that is killed is the one that
		// was checked, not another that has got its id since.
		p, err := os.FindProcess(pid)
		if err != nil {
			continue
		}
		mark := markOf(environOf(pid))
		if slices.Contains(marks, mark) || mark == "" && slices.Contains(limits, limitMarkOf(pid)) {
			found = append(found, p)
			continue
		}
		_ = p.Release()
	}
	return found
}

// descendants finds the living processes that are in the process group of self, have its mark, or
// descend from it, except self. Processes with a mark of their own, and their descendants, are left
// out.
func descendants(self int, mark string) []*os.Process {
	type entry struct {
		process *os.Process
		state   stat
		mine    bool
	}
	all := make(map[int]*entry)
	for _, pid := range processes() {
		if pid == self || isForeign(pid, limitOf(mark)) {
			continue
		}
		p, err := os.FindProcess(pid)
		if err != nil {
			continue
		}
		s, ok := statOf(pid)
		if !ok || s.zombie {
			_ = p.Release()
			continue
		}
		e := &entry{process: p, state: s}
		switch markOf(environOf(pid)) {
		case mark:
			e.mine = true
		case "":
			limit := limitMarkOf(pid)
			if limit != 0 && limit != limitOf(mark) { // it descends from another launched process
				_ = p.Release()
				continue
			}
			e.mine = limit != 0 || s.group == self
		default: // another launched process, or a descendant of it
			_ = p.Release()
			continue
		}
		all[pid] = e
	}
	var found []*os.Process
	for _, e := range all {
		mine := e.mine
		for up, hops := e, 0; up != nil && !mine && hops <= len(all); up, hops = all[up.state.parent], hops+1 {
			mine = up.mine || up.state.parent == self
		}
		if mine {
			found = append(found, e.process)
		} else {
			_ = e.process.Release()
		}
	}
	return found
}

// processes lists the ids of this user's processes.
func processes() []int {
	proc, err := os.Open("/proc")
	if err != nil {
		return nil
	}
	defer func() { _ = proc.Close() }()
	names, err := proc.Readdirnames(-1)
	if err != nil {
		return nil
	}
	uid := os.Geteuid()
	pids := make([]int, 0, len(names))
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		var info unix.Stat_t
		if uid == 0 || unix.Stat("/proc/"+name, &info) == nil && int(info.Uid) == uid {
			pids = append(pids, pid)
		}
	}
	return pids
}

// environOf is a process's environment as of its start; empty for a zombie, and if it is not
// accessible.
func environOf(pid int) string {
	f, err := os.Open("/proc/" + strconv.Itoa(pid) + "/environ")
	if err != nil {
		return ""
	}
	defer func() { _ = f.Close() }()
	environ, _ := io.ReadAll(io.LimitReader(f, maxEnviron)) // use what could be read
	return string(environ)
}

// stat is the part of /proc/<pid>/stat that is used.
type stat struct {
	parent, group int
	zombie        bool
}

func statOf(pid int) (stat, bool) {
	text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return stat{}, false
	}
	// The name, in parentheses, may contain anything, including parentheses.
	fields := bytes.Fields(text[bytes.LastIndexByte(text, ')')+1:])
	if len(fields) < 3 {
		return stat{}, false
	}
	parent, err1 := strconv.Atoi(string(fields[1]))
	group, err2 := strconv.Atoi(string(fields[2]))
	return stat{parent: parent, group: group, zombie: fields[0][0] == 'Z' || fields[0][0] == 'X'}, err1 == nil && err2 == nil
}
