package launch

import (
	"errors"
	"flag"
	"runtime"
	"strings"
	"sync/atomic"
	"testing" //nolint:depguard // to know whether this is a test binary; it registers no flags
)

// ErrInTests refuses a launch by a test binary that would run its tests again in the new process,
// instead of becoming a host.
var ErrInTests = errors.New("a test binary launches no processes unless its TestMain calls raylink.Init before m.Run: " +
	"without that, the new process would run the tests instead of its node. Add\n\n" +
	"\tfunc TestMain(m *testing.M) {\n" +
	"\t\trt, err := raylink.Init(context.Background(), ...your node types...)  // in a host's process it serves and never returns\n" +
	"\t\tif err != nil {\n\t\t\tlog.Fatal(err)\n\t\t}\n" +
	"\t\tcode := m.Run()\n\t\trt.Close()\n\t\tos.Exit(code)\n" +
	"\t}\n\n" +
	"or create the nodes in this process (raylink.Start does that by default)")

//nolint:gochecknoglobals // whether TestMain is prepared is a fact about the binary
var allowedInTests atomic.Bool

// AllowInTests declares that this program, if it is a test binary, checks with [Inherited] whether
// it is a host before it runs its tests. It is for the function that TestMain calls to become a
// host. It has an effect only if it is called before m.Run, on TestMain's goroutine: within a test
// it would come too late in the new process. In programs that are not test binaries it does
// nothing.
func AllowInTests() {
	if inTestBinary() && beforeTests() {
		allowedInTests.Store(true)
	}
}

func allowedInTestBinary() error {
	if inTestBinary() && !allowedInTests.Load() {
		return ErrInTests
	}
	return nil
}

func inTestBinary() bool { return testing.Testing() }

// beforeTests reports whether the calling goroutine is main's, and not within m.Run.
func beforeTests() bool {
	var main bool
	callers := make([]uintptr, 256)
	frames := runtime.CallersFrames(callers[:runtime.Callers(1, callers)])
	for {
		frame, more := frames.Next()
		switch frame.Function {
		case "main.main":
			main = true
		case "testing.(*M).Run", "testing.tRunner":
			return false
		}
		if !more {
			return main
		}
	}
}

// withoutTestFlags removes the flags of go test from arguments. takesValue reports whether the
// argument after a flag is its value.
func withoutTestFlags(args []string, takesValue func(name string) bool) []string {
	kept := make([]string, 0, len(args))
	for i := 0; i < len(args); i++ {
		arg := args[i]
		if arg == "--" {
			return append(kept, args[i:]...)
		}
		name, isTest := testFlag(arg)
		if !isTest {
			kept = append(kept, arg)
			continue
		}
		if !strings.Contains(name, "=") && takesValue(name) {
			i++
		}
	}
	return kept
}

// testFlag returns the name of a flag of go test, with `=value` if it has one.
func testFlag(arg string) (name string, ok bool) {
	name, ok = strings.CutPrefix(arg, "-")
	if !ok {
		return "", false
	}
	name = strings.TrimPrefix(name, "-")
	return name, strings.HasPrefix(name, "test.")
}

func takesValue(name string) bool {
	known := flag.Lookup(name)
	if known == nil {
		return false
	}
	boolean, ok := known.Value.(interface{ IsBoolFlag() bool })
	return !ok || !boolean.IsBoolFlag()
}
