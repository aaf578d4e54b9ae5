package launch

import (
	"fmt"
	"os"
	"strings"
	"syscall"
)

// Exit describes how a process ended.
type Exit struct {
	// Code is the exit code, or -1 if a signal ended it.
	Code int
	// Signal is the signal that ended it, or 0.
	Signal syscall.Signal
	// Goodbye is set if the process has sent a goodbye ([Child.Goodbye]): its node had ended by
	// then, and nothing of it was left.
	Goodbye bool
	// Reported is set if Brain had acknowledged the end of its host and nodes before the goodbye.
	Reported bool
	// Reason is why its parent killed it, if it did.
	Reason string
	// Lost is why it is not known how it ended: nothing could be learned from its machine. It is
	// empty if that is known.
	Lost string
	// Lines is its last output. After a crash of a process with many goroutines, the first lines of
	// the crash precede it.
	Lines []Line

	ended  bool
	dumped bool
}

func exitOf(state *os.ProcessState, reason string, lines []Line) Exit {
	exit := Exit{Code: -1, Lines: lines, ended: true}
	if state == nil {
		return exit
	}
	exit.Code = state.ExitCode()
	if status, ok := state.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		exit.Signal, exit.dumped = status.Signal(), status.CoreDump()
		if exit.Signal == syscall.SIGKILL { // otherwise something else ended it first
			exit.Reason = reason
		}
	}
	return exit
}

// Retired is how a part of a process ends that is launched like one: all of it has ended in order,
// and Brain knows.
func Retired() Exit { return Exit{Goodbye: true, Reported: true, ended: true} }

// Success reports whether the process exited by itself with code 0.
func (e Exit) Success() bool { return e.ended && e.Code == 0 && e.Signal == 0 }

// String describes how it ended, without its output: "exited with code 1", "killed by signal 9
// (killed)".
func (e Exit) String() string {
	var text string
	switch {
	case !e.ended:
		return "still running"
	case e.Lost != "":
		return "lost: " + e.Lost
	case e.Signal != 0:
		text = fmt.Sprintf("killed by signal %d (%s)", int(e.Signal), e.Signal)
		if e.dumped {
			text += ", core dumped"
		}
	case e.Code < 0:
		text = "ended in an unknown way"
	default:
		text = fmt.Sprintf("exited with code %d", e.Code)
	}
	if e.Reason != "" {
		text += ": its parent ended it, as " + e.Reason
	}
	return text
}

// output formats its last output as a part of an error's text.
func (e Exit) output() string {
	if len(e.Lines) == 0 {
		return "; it printed nothing"
	}
	var text strings.Builder
	text.WriteString("; it printed last:")
	for _, line := range e.Lines {
		text.WriteString("\n  | ")
		text.WriteString(line.Text)
	}
	return text.String()
}
