package launch

import "fmt"

// FailedError says that a process reported that setting up failed. The process is gone.
type FailedError struct {
	// Name is the process's, as in [Spec].
	Name string
	// Payload is the reason, as the process gave it to [Child.Failed].
	Payload []byte
	// Exit is how it ended afterwards.
	Exit Exit
}

// Error says that setting up failed. The reason is in the payload, which is opaque to this package.
func (e *FailedError) Error() string {
	return fmt.Sprintf("launch: %s: set-up failed%s", e.Name, e.Exit.output())
}

// DiedError says that a process ended before it said that it was set up.
type DiedError struct {
	// Name is the process's, as in [Spec].
	Name string
	// PID was its id.
	PID int
	// Greeted says whether it had said hello: if not, it didn't get as far as [Inherited].
	Greeted bool
	// Exit is how it ended, and what it printed last.
	Exit Exit
}

// Error says when and how it died, and what it printed last.
func (e *DiedError) Error() string {
	when := "before it shook hands"
	if e.Greeted {
		when = "during its set-up"
	}
	return fmt.Sprintf("launch: %s (process %d) ended %s: %s%s", e.Name, e.PID, when, e.Exit, e.Exit.output())
}

// HandshakeError says that a process was killed because it didn't say hello in time, is another
// build, or broke the protocol.
type HandshakeError struct {
	// Name is the process's, as in [Spec].
	Name string
	// PID was its id.
	PID int
	// Reason is what it was killed for.
	Reason string
	// Exit is how it ended, and what it printed last.
	Exit Exit
}

// Error says what was wrong, and what the process printed last.
func (e *HandshakeError) Error() string {
	return fmt.Sprintf("launch: %s (process %d) was killed: %s%s", e.Name, e.PID, e.Reason, e.Exit.output())
}
