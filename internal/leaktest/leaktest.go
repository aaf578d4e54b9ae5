// Package leaktest finds what a test leaves behind: open files and mapped files of the process. For
// goroutines see package goleak.
package leaktest

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"sync"
	"time"
)

// patience is how long a test may take to give up what it used: a connection's other end may close
// after the test.
const patience = 10 * time.Second

// TB is what [Check] needs of a test.
type TB interface {
	Helper()
	Cleanup(f func())
	Errorf(format string, args ...any)
}

// checked has the tests that are checked already.
var checked sync.Map //nolint:gochecknoglobals // tests that run now

// Check lets a test fail that leaves files open or mapped which were not before the call: at its
// end, after the cleanups that are registered later. Only the first call in a test counts. Tests
// that run at the same time would be taken for each other.
func Check(t TB) {
	t.Helper()
	if _, again := checked.LoadOrStore(t, true); again {
		return
	}
	before := take()
	t.Cleanup(func() {
		checked.Delete(t)
		if left := before.left(patience); len(left) > 0 {
			t.Errorf("the test has left behind: %s", strings.Join(left, "; "))
		}
	})
}

// Process returns a function that gets the code with which the tests of a package end, and returns
// 1 instead of 0 if files are open or mapped which were not when Process was called. For TestMain:
//
//	code := leaktest.Process()
//	goleak.VerifyTestMain(m, goleak.Cleanup(func(c int) { os.Exit(code(c)) }))
func Process() func(code int) int {
	before := take()
	return func(code int) int {
		if left := before.left(patience); len(left) > 0 && code == 0 {
			fmt.Fprintf(os.Stderr, "the tests have left behind: %s\n", strings.Join(left, "; "))
			return 1
		}
		return code
	}
}

// snapshot counts what is open and mapped, by its description.
type snapshot map[string]int

// left returns what there is now and was not at the time of the snapshot. It waits until there is
// nothing.
func (s snapshot) left(most time.Duration) []string {
	for end := time.Now().Add(most); ; time.Sleep(time.Millisecond) { //nolint:forbidigo // a condition with a deadline
		var left []string
		for what, n := range take() {
			if more := n - s[what]; more > 0 {
				left = append(left, fmt.Sprintf("%d x %s", more, what))
			}
		}
		if len(left) == 0 || time.Now().After(end) {
			slices.Sort(left)
			return left
		}
	}
}

// take returns what is open and mapped now. It is empty where the system has no /proc.
func take() snapshot {
	s := make(snapshot)
	s.addFiles()
	s.addMappings()
	return s
}

// addFiles adds the open files. Those of the Go runtime are not counted: it opens them once.
func (s snapshot) addFiles() {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return
	}
	for _, e := range entries {
		target, err := os.Readlink("/proc/self/fd/" + e.Name())
		switch {
		case errors.Is(err, fs.ErrNotExist), err != nil: // closed meanwhile, as the directory itself
		case strings.HasPrefix(target, "anon_inode:[event"), strings.HasPrefix(target, "/proc/"):
		case strings.HasPrefix(target, "socket:"):
			s["open socket"]++
		case strings.HasPrefix(target, "pipe:"):
			s["end of a pipe"]++
		default:
			s["open file "+target]++
		}
	}
}

// addMappings adds the mapped files, but for those of the program and its libraries.
func (s snapshot) addMappings() {
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		return
	}
	program, _ := os.Executable()
	for line := range strings.Lines(string(maps)) {
		fields := strings.Fields(line)
		const path = 5
		if len(fields) <= path || !strings.HasPrefix(fields[path], "/") {
			continue
		}
		name := strings.Join(fields[path:], " ")
		if name == program || strings.Contains(name, ".so") {
			continue
		}
		s["mapping of "+name] = 1 // in several pieces, as the kernel likes
	}
}
