package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	machinev1 "github.com/raylink/raylink/gen/raylink/machine/v1"
	"github.com/raylink/raylink/internal/assemble"
	"github.com/raylink/raylink/internal/machine"
	"github.com/raylink/raylink/runtime"
	"github.com/raylink/raylink/runtime/launch"
	"github.com/raylink/raylink/runtime/rundir"
)

// agentFlags are the flags of `raylink agent`.
type agentFlags struct {
	name, resources         string
	labels, programs        []string
	listen, advertise, data string
	portRange               string
	insecure, attached      bool
	leaveAfter              time.Duration
}

func (a *app) agentCommand() *cobra.Command {
	var f agentFlags
	cmd := &cobra.Command{
		Use:   "agent",
		Short: "Make this machine part of a system until it is interrupted",
		Long: `agent makes this machine part of a system: nodes that programs elsewhere create run here as well. It waits for a Brain
that is not there yet, and joins again where Brain has declared the machine dead meanwhile. It is a node, machine-0, ….

Programs need not be installed: an agent fetches the executable of a node from the host that creates it, and keeps it in its
--data directory. Resources are what Brain may allocate: cpu, memory, gpu, and others of your own, such as licence=2. Those of
this process's cgroup are found out; --resources replaces amounts.

An agent that is interrupted or terminated stops the nodes on its machine first. If it is killed, their processes end.`,
		Args: between(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error { return a.runAgent(cmd.Context(), &f) },
	}
	flags := cmd.Flags()
	flags.StringVar(&f.name, "name", "", "what the machine is called (default: RAYLINK_MACHINE, or else its host name)")
	flags.StringVar(&f.resources, "resources", "", "amounts that replace what was found, or add others: cpu=8,gpu=1,memory=32GiB,licence=2 (RAYLINK_RESOURCES)")
	flags.StringArrayVar(&f.labels, "label", nil, "a label, KEY=VALUE, that nodes can require; may be repeated")
	flags.StringArrayVar(&f.programs, "program", nil, "an executable that is installed here, NAME=PATH; may be repeated")
	flags.StringVar(&f.listen, "listen", "", "the address to listen on (RAYLINK_LISTEN)")
	flags.StringVar(&f.advertise, "advertise", "", "the address that others connect to, if it differs from --listen (RAYLINK_ADVERTISE)")
	flags.StringVar(&f.portRange, "port-range", "", "the ports to listen on, for this agent and each node's process, e.g. 7000-7100 (RAYLINK_PORT_RANGE)")
	flags.StringVar(&f.data, "data", "", "the directory of programs, logs and mapped files (RAYLINK_DATA; default: `raylink` in the user's state directory)")
	flags.DurationVar(&f.leaveAfter, "leave-after", 0, "end once a Brain that was there can't be reached for so long (default: wait for it)")
	a.attachedFlag(cmd, &f.attached)
	flags.BoolVar(&f.insecure, "insecure", false, "listen beyond loopback although nothing is encrypted (RAYLINK_INSECURE=1)")
	a.clientFlags(cmd)
	return cmd
}

// options are the options of the agent's host.
func (f *agentFlags) options() ([]runtime.Option, error) {
	described := runtime.MachineOptions{Name: f.name, Resources: f.resources, Programs: make(map[string]string)}
	if _, err := machine.ParseResources(f.resources); err != nil {
		return nil, usagef("--resources: %v", err)
	}
	labels, err := machine.ParseLabels(f.labels...)
	if err != nil {
		return nil, usagef("--label: %v", err)
	}
	described.Labels = runtime.Labels(labels)
	for _, text := range f.programs {
		name, path, ok := strings.Cut(text, "=")
		if _, twice := described.Programs[name]; !ok || twice {
			return nil, usagef("--program %q: it must be NAME=PATH, once for each name", text)
		}
		described.Programs[name] = path
	}
	options := []runtime.Option{runtime.WithMachine(described)}
	for _, given := range []struct {
		value  string
		option func(string) runtime.Option
	}{{f.listen, runtime.WithListen}, {f.advertise, runtime.WithAdvertise}, {f.portRange, runtime.WithPortRange}, {f.data, runtime.WithData}} {
		if given.value != "" {
			options = append(options, given.option(given.value))
		}
	}
	if f.insecure {
		options = append(options, runtime.WithInsecure())
	}
	return options, nil
}

func (a *app) runAgent(ctx context.Context, f *agentFlags) error {
	options, err := f.options()
	if err != nil {
		return err
	}
	if f.attached {
		var detach func()
		if ctx, detach, err = a.attach(ctx); err != nil {
			return err
		}
		defer detach()
	}
	address, err := a.address(ctx)
	if err != nil {
		return err
	}
	token, err := a.secret(address)
	if err != nil && !errors.Is(err, rundir.ErrNoToken) {
		return err
	}
	joined := func() {}
	if !launch.Launched() {
		var stop func()
		ctx, joined, stop = whileBrainIsThere(ctx, address, token, f.leaveAfter)
		defer stop()
	}
	options = append(options, runtime.WithBrain(address))
	switch {
	case token != "":
		options = append(options, runtime.WithToken(token))
	case a.open || err == nil:
		options = append(options, runtime.WithOpen())
	}
	if err := assemble.Agent(ctx, func(node string, machine *machinev1.Machine) {
		joined()
		a.agentReady(node, machine)
	}, options...); err != nil {
		return &localError{err}
	}
	return nil
}

// agentReady prints the line which announces that the agent has joined.
func (a *app) agentReady(node string, joined *machinev1.Machine) {
	if a.output == outputJSON {
		fields := map[string]any{
			"node": node, "machine": joined.GetName(), "resources": machine.Resources(joined.GetResources()).String(), "pid": os.Getpid(),
		}
		if line, err := json.Marshal(fields); err == nil {
			_, _ = fmt.Fprintf(a.out, "%s\n", line) // the reader may have closed the pipe
		}
		return
	}
	labels := ""
	if len(joined.GetLabels()) > 0 {
		labels = ", labels " + machine.Labels(joined.GetLabels()).String()
	}
	_, _ = fmt.Fprintf(a.out, "%s: the machine %s has joined: %s%s\n", node, printable(joined.GetName()),
		machine.Resources(joined.GetResources()).Summary(), labels) // as above
}
