package launch

import (
	"syscall"

	machinev1 "github.com/raylink/raylink/gen/raylink/machine/v1"
)

// How lines and ends of processes travel between machines.

func lineMessage(line Line) *machinev1.OutputLine {
	return &machinev1.OutputLine{Node: line.Path, Stream: uint32(line.Stream), Text: []byte(line.Text)}
}

func lineOf(m *machinev1.OutputLine) Line {
	stream := Stdout
	if m.GetStream() == uint32(Stderr) {
		stream = Stderr
	}
	return Line{Path: m.GetNode(), Stream: stream, Text: string(m.GetText())}
}

func exitMessage(e Exit) *machinev1.Exit {
	return &machinev1.Exit{
		Code: int32(e.Code), Signal: int32(e.Signal), //nolint:gosec // the system's numbers fit
		Goodbye: e.Goodbye, Reported: e.Reported, Reason: e.Reason, Dumped: e.dumped,
	}
}

func exitFrom(m *machinev1.Exit) Exit {
	return Exit{
		Code: int(m.GetCode()), Signal: syscall.Signal(m.GetSignal()),
		Goodbye: m.GetGoodbye(), Reported: m.GetReported(), Reason: m.GetReason(), dumped: m.GetDumped(), ended: true,
	}
}
