package engine

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/raylink/raylink/internal/machine"
	"github.com/raylink/raylink/runtime/rundir"
)

// Agent is an agent that is a child of this process.
type Agent struct {
	// Raylink is the executable, Brain the address that the agent joins, and Token the secret of
	// the run.
	Raylink, Brain, Token string
	// Name is what the lines of its output begin with.
	Name string
	// Flags are further flags of `raylink agent`: [Group.AgentFlags], [ResourceFlags].
	Flags []string
	// Identity is that of the machine which the agent makes available.
	Identity string
	// Directory is for the agent's files and sockets. Its path must be short, and it must not be on
	// a file system that machines share. It is made if it is not there; the caller removes it.
	Directory string
	// Output gets the lines of its output, on any goroutine. That the agent has joined is Brain's
	// to report.
	Output func(line string)
}

// Start starts the agent, which ends when this process does.
func (a *Agent) Start() (*Process, error) {
	data, sockets := filepath.Join(a.Directory, "data"), filepath.Join(a.Directory, "s")
	if err := errors.Join(os.MkdirAll(data, 0o700), os.MkdirAll(sockets, 0o700)); err != nil {
		return nil, err
	}
	env := []string{rundir.MachineEnv + "=" + a.Identity, rundir.DataEnv + "=" + data, rundir.RuntimeEnv + "=" + sockets}
	output := func(line string) {
		if line != "" && line[0] != '{' {
			a.Output(a.Name + ": " + line)
		}
	}
	args := slices.Concat([]string{"agent", "--attached", "-o", "json", "--brain", a.Brain}, a.Flags)
	process, err := StartAttached(a.Token, env, output, a.Raylink, args...)
	if err != nil {
		return nil, fmt.Errorf("starting the agent %s: %w", a.Name, err)
	}
	return process, nil
}

// ResourceFlags returns the flag by which an agent has resources instead of what it finds.
func ResourceFlags(r machine.Resources) []string {
	if r.IsZero() {
		return nil
	}
	return []string{"--resources", r.String()}
}
