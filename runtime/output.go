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

	"github.com/raylink/raylink/runtime/internal/usercode"
	"github.com/raylink/raylink/runtime/launch"
)

// printing keeps lines whole that several processes print at once.
var printing sync.Mutex //nolint:gochecknoglobals // standard error is global too

// print is what becomes of a node's output where no option says otherwise.
func (o *Options) print(l launch.Line) {
	if o.Output != nil {
		o.Output(l.Path, l.Text)
		return
	}
	printing.Lock()
	defer printing.Unlock()
	_, _ = io.WriteString(os.Stderr, l.Path+" | "+l.Text+"\n") // there is nowhere to tell of a failure
}

// output hands over what the processes of nodes print, to code of the user.
type output struct {
	to func(launch.Line)
	// name is what to is, as errors say it.
	name string
	log  *slog.Logger

	mu sync.Mutex // guards what follows
	// stalled is since when the lines of processes wait for it, by the nodes' paths.
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

// take hands over a line. A panic costs that line; where to ends its goroutine the launcher goes on
// with another.
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
		if first { // it may do so for every line
			f.Log(o.log, o.name, slog.String("node", l.Path))
		}
	}()
	o.to(l)
	returned = true
}

// waits is called when lines of a node's process can't be handed over any more, and when they can
// again.
func (o *output) waits(path string, stalled bool) {
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

// err says that lines could not be handed over to the end.
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
