package raylink_test

import (
	"context"
	"fmt"
	"os"
	"testing"

	"go.uber.org/goleak"

	"github.com/raylink/raylink"
	"github.com/raylink/raylink/internal/contract"
)

// driver is the system that Init made for this test binary: its nodes get processes of their own.
var driver *raylink.Runtime

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	// The race detector makes every process wait a second before it ends.
	if err := os.Setenv("GORACE", "atexit_sleep_ms=0"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	// A node's process is this binary once more: it finds the driver's directory there.
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
	driver, err = raylink.Init(context.Background(), contract.Types()...)
	if err != nil {
		fmt.Fprintln(os.Stderr, "Init:", err)
		return 1
	}
	if os.Getenv(driverMode) != "" {
		if err := runDriver(context.Background()); err != nil {
			fmt.Fprintln(os.Stderr, "driver:", err)
		}
		return 1
	}
	if os.Getenv(secondMachine) != "" {
		select {}
	}
	code := m.Run()
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
