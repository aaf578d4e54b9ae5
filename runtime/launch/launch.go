// Package launch starts the processes that nodes run in, and implements both ends of the connection
// between a new process and its parent.
//
// A [Launcher] starts the process of a new node. [Self] is the usual one: it runs the same
// executable, with the same arguments and in the same directory, again on this machine. [Process]
// is the parent's end of a launched process; the process itself gets its end from [Inherited].
//
// What the package promises:
//
//   - The payload reaches the process over an inherited pipe, never by its environment or
//     arguments, where other users could read it.
//   - A process that does not send hello within [HelloTimeout], or that is another build, is
//     killed; the error has the reason and its last output, as does that of a process that dies.
//   - [Child.Orphaned] is closed at the end of file of that pipe: as soon as the parent dies, even
//     by kill -9.
//   - Every line that a process prints on stdout or stderr is delivered whole, however fast it
//     prints: a slow receiver blocks the process, and memory is bounded. A receiver that does not
//     return for a second no longer blocks it: see [Spec.Output].
//   - When [Process.Done] is closed, the process has been reaped, its output has been delivered,
//     and it uses no resources of this process, even if a descendant still holds its stdout.
//   - What a launched process has started ends with it, see descendants.go.
//
// # Terminals
//
// Processes of [Self] are in a process group of their own. A Ctrl-C on the terminal therefore
// interrupts only the driver, which stops its children gracefully (children before parents); in the
// driver's group they would all die at once, in the middle of calls. The price is that a Ctrl-Z
// stops only the driver. Their stdin is empty. Children notice the death of a driver that is killed
// through the pipe.
package launch

import (
	"context"
	"fmt"
)

// Launcher starts the processes of new nodes.
type Launcher interface {
	// Launch starts a process and returns without waiting for its hello or set-up: [Process.Ready]
	// does that. ctx bounds the launch only; the process outlives it.
	Launch(ctx context.Context, spec Spec) (Process, error)
}

// Spec describes a new process.
type Spec struct {
	// Name is the path of the node that will run in the process. It labels the process's lines and
	// errors.
	Name string
	// Payload is passed to the process, which gets it from [Child.Payload]. It is opaque to this
	// package, at most 64 MiB, and may be secret.
	Payload []byte
	// Output receives every line that the process prints, and every line of its descendants that it
	// forwards with [Child.Forward]. Calls are never concurrent. While Output blocks, so does the
	// printing process, for at most a second: then Output has stalled, and lines are counted
	// instead of delivered until it has returned and received those that are queued; then it
	// receives a line with the number of missing ones. If Output is nil, lines are dropped.
	Output func(Line)
	// Stalled is called with true when Output has stalled, and with false when it has caught up. It
	// must not block. It may be nil.
	Stalled func(stalled bool)
	// Log is the path of a [LogFile] to which the process's own lines are appended, each with the
	// time of its arrival (its descendants have files of their own). Empty means none.
	Log string
	// Env are variables, NAME=VALUE, that the process has in addition to the environment of the
	// process that launches it, or instead of its values.
	Env []string
}

// MaxLine is the length of the longest line, in bytes. Longer ones are delivered in pieces.
const MaxLine = 64 << 10

// Line is a line that a process printed.
type Line struct {
	// Path is the name of the process that printed the line, as in [Spec].
	Path string
	// Stream is the stream on which it was printed.
	Stream Stream
	// Text is the line without its end: arbitrary bytes, as the process printed them.
	Text string
}

// Stream is one of a process's two streams of output.
type Stream uint8

// The streams of output.
const (
	Stdout Stream = 1
	Stderr Stream = 2
)

// String is the usual name of the stream.
func (s Stream) String() string {
	switch s {
	case Stdout:
		return "stdout"
	case Stderr:
		return "stderr"
	}
	return fmt.Sprintf("stream %d", uint8(s))
}

// Process is the parent's end of a launched process. Its methods are safe for concurrent use, and
// may be called any number of times.
type Process interface {
	// PID is its process id on its machine.
	PID() int

	// Ready blocks until the process has reported the result of its set-up, and returns the payload
	// of [Child.Ready].
	//
	// If it returns an error, the process has ended and been reaped:
	//   - set-up has failed: *[FailedError], with the reason;
	//   - the handshake has failed: *[HandshakeError];
	//   - the process has died: *[DiedError];
	//   - ctx has ended, so the process was killed: an error that wraps the context's.
	Ready(ctx context.Context) ([]byte, error)

	// Stop requests the process to stop gracefully, and blocks until it has ended in any way;
	// [Process.Exit] describes how. If ctx ends first, the process is killed, and the error wraps
	// the context's.
	Stop(ctx context.Context) error

	// Kill kills the process. It does not wait. Killing a process that has ended is no error.
	Kill() error

	// Done is closed when the process has ended, has been reaped, and all its output has been
	// delivered. If the receiver of its output is stuck, Done waits at most a second for it.
	Done() <-chan struct{}

	// Exit describes how the process ended. Before Done is closed it says that it is still running.
	Exit() Exit
}
