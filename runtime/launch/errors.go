package launch

import "fmt"

// FailedError is the error of a process that reported that its set-up failed. The process has
// ended.
type FailedError struct {
	// Name is that of the process, as in [Spec].
	Name string
	// Payload is the reason, as passed to [Child.Failed].
	Payload []byte
	// Exit is how it ended afterwards.
	Exit Exit
}

// Error says that set-up failed, without the reason: that is in the payload, which is opaque to
// this package.
func (e *FailedError) Error() string {
	return fmt.Sprintf("launch: %s: set-up failed%s", e.Name, e.Exit.output())
}

// DiedError is the error of a process that ended before it reported the result of its set-up.
type DiedError struct {
	// Name is that of the process, as in [Spec].
	Name string
	// PID was its process id.
	PID int
	// Greeted is whether it had sent hello. If not, it had not called [Inherited].
	Greeted bool
	// Exit is how it ended, with its last output.
	Exit Exit
}

// Error describes when and how the process died, with its last output.
func (e *DiedError) Error() string {
	when := "before it shook hands"
	if e.Greeted {
		when = "during its set-up"
	}
	return fmt.Sprintf("launch: %s (process %d) ended %s: %s%s", e.Name, e.PID, when, e.Exit, e.Exit.output())
}

// HandshakeError is the error of a process that was killed because it did not send hello in time,
// is another build, or violated the protocol.
type HandshakeError struct {
	// Name is that of the process, as in [Spec].
	Name string
	// PID was its process id.
	PID int
	// Reason is why it was killed.
	Reason string
	// Exit is how it ended, with its last output.
	Exit Exit
}

// Error describes the failure, with the process's last output.
func (e *HandshakeError) Error() string {
	return fmt.Sprintf("launch: %s (process %d) was killed: %s%s", e.Name, e.PID, e.Reason, e.Exit.output())
}
