package raylink_test

import (
	"context"
	"fmt"
	"os"
	"testing"

	"go.uber.org/goleak"

	"github.com/raylink/raylink"
	"github.com/raylink/raylink/internal/contract"
	"github.com/raylink/raylink/runtime"
)

// driver is the system that Init made for this test binary: its nodes get processes of their own.
var driver *raylink.Runtime //nolint:gochecknoglobals // Init is once for a process

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	// The race detector makes every process wait a second before it ends.
	if err := os.Setenv("GORACE", "atexit_sleep_ms=0"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	data, err := os.MkdirTemp("", "raylink-test")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer func() { _ = os.RemoveAll(data) }()
	opts := append(contract.Types(), raylink.WithData(data))
	driver, err = raylink.Init(context.Background(), append([]runtime.Option{}, opts...)...)
	if err != nil {
		fmt.Fprintln(os.Stderr, "Init:", err)
		return 1
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
