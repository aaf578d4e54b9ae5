package runtime

import (
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"slices"
	"sync"
	"time"

	"connectrpc.com/connect/v2"

	"github.com/raylink/raylink/internal/usercode"
	"github.com/raylink/raylink/runtime/launch"
)

// printing keeps the lines of concurrent processes from being interleaved.
var printing sync.Mutex //nolint:gochecknoglobals // standard error is global too

// print writes a line of a node's output to the Output function, or else to standard error.
func (o *Options) print(l launch.Line) {
	if o.Output != nil {
		o.Output(l.Path, l.Text)
		return
	}
	printing.Lock()
	defer printing.Unlock()
	_, _ = io.WriteString(os.Stderr, l.Path+" | "+l.Text+"\n") // a failure could be reported nowhere
}

// output delivers the lines that nodes' processes print to user code.
type output struct {
	to func(launch.Line)
	// name describes to in errors.
	name string
	log  *slog.Logger

	mu sync.Mutex // guards the fields below
	// stalled maps the paths of nodes whose output is blocked to the time when that began.
	stalled  map[string]time.Time
	panicked bool
}

func newOutput(options *Options, to func(launch.Line), log *slog.Logger) *output {
	o := &output{to: to, name: "the parent's process", log: log, stalled: make(map[string]time.Time)}
	if to != nil {
		return o
	}
	o.to, o.name = options.print, "standard error"
	if options.Output != nil {
		o.name = "the function given with WithOutput"
	}
	return o
}

// take delivers a line. If to panics, that line is lost; after a Goexit the launcher continues on
// another goroutine.
func (o *output) take(l launch.Line) {
	returned := false
	defer func() {
		f := usercode.Outcome(returned, recover())
		if f == nil {
			return
		}
		o.mu.Lock()
		first := !o.panicked
		o.panicked = true
		o.mu.Unlock()
		if first { // it may panic for every line
			f.Log(o.log, o.name, slog.String("node", l.Path))
		}
	}()
	o.to(l)
	returned = true
}

// setStalled is called when delivery of a node's lines begins to block, and when it continues.
func (o *output) setStalled(path string, stalled bool) {
	o.mu.Lock()
	if stalled {
		o.stalled[path] = time.Now()
	} else {
		delete(o.stalled, path)
	}
	o.mu.Unlock()
	if stalled {
		o.log.Warn("what a node's process prints is not shown, for "+o.name+" takes no lines: its log in the run directory has it",
			slog.String("node", path))
		return
	}
	o.log.Info("what a node's process prints is shown again", slog.String("node", path))
}

// err reports lines whose delivery was still blocked at the end.
func (o *output) err() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.stalled) == 0 {
		return nil
	}
	path := slices.Sorted(maps.Keys(o.stalled))[0]
	return connect.NewError(connect.CodeDeadlineExceeded, fmt.Sprintf(
		"what %s printed could not be shown: %s has not returned for %v, and its goroutine is left behind; the node's log in the run directory has the lines",
		path, o.name, time.Since(o.stalled[path]).Round(time.Millisecond)))
}
