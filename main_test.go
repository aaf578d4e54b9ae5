package raylink_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/raylink/raylink"
	"github.com/raylink/raylink/internal/contract"
)

// driver is the system that Init made for this test binary. Its nodes get processes of their own.
var driver *raylink.Runtime

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	// The race detector delays the exit of every process by a second.
	if err := os.Setenv("GORACE", "atexit_sleep_ms=0"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	// Systems are open by default, so that a plain HTTP client can call them. Tests of tokens close
	// theirs.
	if err := os.Setenv("RAYLINK_OPEN", "1"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	// A node's process runs this binary too, and finds the driver's directory there.
	if os.Getenv("RAYLINK_DATA") == "" {
		data, err := os.MkdirTemp("", "raylink-test")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer func() { _ = os.RemoveAll(data) }()
		if err := os.Setenv("RAYLINK_DATA", data); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	var err error
	driver, err = raylink.Init(context.Background(), append(contract.Types(), thirdPartyTypes()...)...)
	if err != nil {
		fmt.Fprintln(os.Stderr, "Init:", err)
		return 1
	}
	if os.Getenv(driverMode) != "" {
		run := map[string]func(context.Context) error{"1": runDriver, "stuck": runStuckDriver, "orphan": runOrphaningDriver}[os.Getenv(driverMode)]
		if err := run(context.Background()); err != nil {
			fmt.Fprintln(os.Stderr, "driver:", err)
		}
		return 1
	}
	if os.Getenv(secondMachine) != "" {
		if err := useParameters(context.Background()); err != nil {
			fmt.Fprintln(os.Stderr, "another machine's process:", err)
		}
		return 1
	}
	code := m.Run()
	stuck := time.AfterFunc(12*time.Second, dumpChildren)
	defer stuck.Stop()
	if err := driver.Close(); err != nil {
		fmt.Fprintln(os.Stderr, "Close:", err)
		code = 1
	}
	if err := goleak.Find(); err != nil {
		fmt.Fprintln(os.Stderr, "goroutines were left behind:", err)
		code = 1
	}
	return code
}

// dumpChildren kills the processes below this one that should have ended by now, and has them print
// their goroutines.
func dumpChildren() {
	tasks, err := filepath.Glob("/proc/self/task/*/children")
	if err != nil {
		return
	}
	for _, task := range tasks {
		list, err := os.ReadFile(task)
		if err != nil {
			continue // the thread has ended
		}
		for field := range strings.FieldsSeq(string(list)) {
			pid, err := strconv.Atoi(field)
			if err != nil {
				continue
			}
			stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
			fmt.Fprintf(os.Stderr, "process %d has not ended: %s %v\n", pid, stat, err)
			_ = syscall.Kill(pid, syscall.SIGQUIT) // a Go program prints its goroutines at this signal
		}
	}
}
