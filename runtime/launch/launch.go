// Package launch starts the processes that nodes live in, and is both ends of the wire between a
// new process and the one that started it.
//
// A [Launcher] is where a new node's process comes from. [Self] is the one that everybody starts
// with: the same executable, arguments and directory once more on this machine. The parent's end of
// a launched process is a [Process]; the process itself finds its own end with [Inherited].
//
// What the package promises:
//
//   - What a process is to do reaches it over an inherited pipe, never by environment or arguments,
//     where others could read it.
//   - A process that does not say hello within [HelloTimeout], or that is another build, is killed,
//     and the error says so and
//     holds what it printed. So does the error of one that dies.
//   - The parent's death is the end of file of that pipe, seen at once by [Child.Orphaned], also
//     after kill -9.
//   - Every line that a process prints on stdout or stderr is handed over whole, however fast it
//     prints: a receiver that is
//     too slow makes the process wait, and nothing piles up. A receiver that takes no line for a second is not waited for:
//     see [Spec.Output].
//   - When [Process.Done] is closed the process has been reaped, its output has been delivered, and
//     nothing of it is left in
//     this process, even if a process that it started still holds its stdout.
//   - What a launched process has started ends with it, see descendants.go.
//
// # Terminals
//
// Self's processes are in a process group of their own. A Ctrl-C on the terminal therefore
// interrupts the driver alone, which stops its children in order (children before parents); were
// they in its group they would all die at once, mid-call. The price is that a Ctrl-Z stops only the
// driver. Their stdin is empty. A driver that is killed outright is noticed by its children through
// the pipe.
package launch

import (
	"context"
	"fmt"
)

// Launcher is where a new node's process comes from.
type Launcher interface {
	// Launch starts a process and returns without waiting for it to say anything: [Process.Ready]
	// does that. ctx bounds the launch alone; the process outlives it.
	Launch(ctx context.Context, spec Spec) (Process, error)
}

// Spec is what a new process is to be.
type Spec struct {
	// Name is the path of the node that will live in the process. It marks the process's lines and
	// stands in messages.
	Name string
	// Payload is what the process needs to know, opaque to this package: the child reads it with
	// [Child.Payload]. It may be up to 64 MiB, and may be secret.
	Payload []byte
	// Output gets every line that the process prints, and every line of its descendants that it
	// passes on by [Child.Forward]. It is called from one goroutine at a time. While it blocks, the
	// process that prints waits, but for a second at most: then Output has stalled, and lines are
	// counted instead of handed over until it has returned and taken those that wait; it gets a
	// line that says how many are missing. Nil drops the lines.
	Output func(Line)
	// Stalled is called with true when Output has stalled, and with false when it has gone on. It
	// must not block. Nil is allowed.
	Stalled func(stalled bool)
	// Log names a file that the process's own lines are appended to, each after the time at which
	// it came (its descendants have files of their own). It is a [LogFile]. Empty means none.
	Log string
}

// MaxLine is the longest line, in bytes. What is longer is handed over in pieces.
const MaxLine = 64 << 10

// Line is a line that a process printed.
type Line struct {
	// Path is the name of the process that printed it, as in [Spec].
	Path string
	// Stream is where it printed it.
	Stream Stream
	// Text is the line without its end. It is what the process printed: any bytes.
	Text string
}

// Stream is one of a process's two streams of output.
type Stream uint8

// The streams of output.
const (
	Stdout Stream = 1
	Stderr Stream = 2
)

// String is the stream's usual name.
func (s Stream) String() string {
	switch s {
	case Stdout:
		return "stdout"
	case Stderr:
		return "stderr"
	}
	return fmt.Sprintf("stream %d", uint8(s))
}

// Process is a launched process, as its parent sees it. Its methods may be called from any
// goroutine, any number of times.
type Process interface {
	// PID is its id on its machine.
	PID() int

	// Ready waits until the process says that it is set up, and returns the payload that it said so
	// with ([Child.Ready]).
	//
	// In every other case the process is gone, and reaped, when Ready returns:
	//   - it says that setting up failed: *[FailedError], with what it gave as the reason;
	//   - it doesn't shake hands as it should: *[HandshakeError];
	//   - it dies: *[DiedError];
	//   - ctx ends, so it is killed: an error that wraps the context's.
	Ready(ctx context.Context) ([]byte, error)

	// Stop asks the process to stop in good order and waits until it has ended, in whatever way:
	// [Process.Exit] says how. If ctx ends before that, it is killed, and the error wraps the
	// context's.
	Stop(ctx context.Context) error

	// Kill kills the process. It doesn't wait; killing one that has ended is no error.
	Kill() error

	// Done is closed when the process has ended, is reaped, and all its output has been delivered.
	// (If the receiver of its output is stuck, Done doesn't wait for it beyond a second.)
	Done() <-chan struct{}

	// Exit is how it ended. Before Done is closed it says that it hasn't.
	Exit() Exit
}
