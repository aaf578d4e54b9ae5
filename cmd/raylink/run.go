package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/raylink/raylink/internal/engine"
	"github.com/raylink/raylink/internal/engine/local"
	"github.com/raylink/raylink/internal/engine/ray"
	"github.com/raylink/raylink/internal/machine"
)

// runFlags are the flags of `raylink run`.
type runFlags struct {
	on, listen, checkpoint        string
	machines, restarts            int
	cpus, gpus, memory, resources string
	labels, groups                []string
	join                          time.Duration
	record                        string
	detach, dryRun                bool
	// allMachines is set if no number of machines was given.
	allMachines bool
	slurm       slurmFlags
	ray         ray.Options
	kubernetes  kubernetesFlags
}

const localEngine = "local"

func (a *app) runCommand() *cobra.Command {
	var f runFlags
	cmd := &cobra.Command{
		Use:   "run [flags] -- PROGRAM [ARGUMENT]...",
		Short: "Run a program over machines of an engine: this machine, Ray, Slurm or Kubernetes",
		Long: `run starts a Brain and one agent for each machine by an engine, runs PROGRAM as the driver, and ends with its exit code.
Then, or when it is interrupted, it takes everything down: a second interrupt does so at once.

Machines that are alike are a group, and have its name as the label "group": without --group there is one. A setting of
a group replaces the flag of the same name: --group trainers:machines=1,gpus=8 --group workers:machines=16,label.zone=a.

A machine that is lost ends the run, unless --restart-machines has the engine provide it again.`,
		Example: `  raylink run --machines 3 --cpus 2 -- ./cartpole --workers 8`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 || cmd.ArgsLenAtDash() != 0 {
				return usagef("the program to run stands after --: raylink run [flags] -- PROGRAM [ARGUMENT]...")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			f.allMachines = !cmd.Flags().Changed("machines") && !cmd.Flags().Changed("group")
			return a.runProgram(cmd.Context(), &f, args)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&f.on, "on", "", "the engine: local, ray, slurm or kubernetes (default: that of the allocation that this process is in, else local)")
	flags.IntVar(&f.machines, "machines", 1, "how many machines")
	flags.StringVar(&f.cpus, "cpus", "", "CPUs of each machine (default: what is there)")
	flags.StringVar(&f.gpus, "gpus", "", "GPUs of each machine (default: what is there)")
	flags.StringVar(&f.memory, "memory", "", "memory of each machine, e.g. 16GiB (default: what is there)")
	flags.StringVar(&f.resources, "resources", "", "other resources of each machine, e.g. licence=2")
	flags.StringArrayVar(&f.labels, "label", nil, "a label of each machine, KEY=VALUE; may be repeated")
	flags.StringArrayVar(&f.groups, "group", nil, "a group of machines, NAME:machines=4,cpus=8,gpus=1,memory=16GiB,label.KEY=VALUE; may be repeated")
	flags.IntVar(&f.restarts, "restart-machines", 0, "how many lost machines the engine is asked for again before a loss ends the run")
	flags.StringVar(&f.listen, "listen", "", "the address of Brain (default: one that the machines can reach)")
	flags.StringVar(&f.checkpoint, "checkpoint", "", "a shell command that runs before an interrupted program is stopped, with RAYLINK_BRAIN")
	flags.DurationVar(&f.join, "join-timeout", 10*time.Minute, "how long the machines may take to join")
	flags.BoolVar(&f.detach, "detach", false, "leave the run behind and print its id, see raylink runs, attach and stop")
	flags.BoolVar(&f.dryRun, "dry-run", false, "print what would be submitted, and start nothing")
	flags.StringVar(&f.record, "record", "", "for --detach: the id of the run that this process is the head of")
	rayFlags(cmd, &f.ray)
	f.kubernetes.add(cmd)
	_ = flags.MarkHidden("record") // it exists
	f.slurm.add(flags)
	completeFlag(cmd, "on", cobra.FixedCompletions(engineNames(), cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

// machineGroups are the groups that the flags ask for.
func (f *runFlags) machineGroups() ([]engine.Group, error) {
	var settings []string
	for _, s := range []struct{ key, value string }{{machine.CPU, f.cpus}, {machine.GPU, f.gpus}, {machine.Memory, f.memory}} {
		if s.value != "" {
			settings = append(settings, s.key+"="+s.value)
		}
	}
	if f.resources != "" {
		settings = append(settings, f.resources)
	}
	resources, err := machine.ParseResources(strings.Join(settings, ","))
	if err != nil {
		return nil, usagef("%v", err)
	}
	labels, err := machine.ParseLabels(f.labels...)
	if err != nil {
		return nil, usagef("--label: %v", err)
	}
	if f.machines < 1 || f.machines > engine.MaxMachines {
		return nil, usagef("--machines is %d: it must be from 1 to %d", f.machines, engine.MaxMachines)
	}
	if f.restarts < 0 {
		return nil, usagef("--restart-machines is %d: it must not be negative", f.restarts)
	}
	if f.join <= 0 {
		return nil, usagef("--join-timeout is %v: it must be positive", f.join)
	}
	defaults := engine.Group{Name: engine.DefaultGroup, Machines: f.machines, Resources: resources, Labels: labels}
	if len(f.groups) == 0 {
		return []engine.Group{defaults}, nil
	}
	names := make(map[string]bool)
	var groups []engine.Group
	for _, text := range f.groups {
		group, err := engine.ParseGroup(text, defaults)
		if err != nil {
			return nil, usagef("--group: %v", err)
		}
		if names[group.Name] {
			return nil, usagef("--group: there are two groups with the name %s", group.Name)
		}
		names[group.Name] = true
		groups = append(groups, group)
	}
	if total := engine.Total(groups); total > engine.MaxMachines {
		return nil, usagef("--group: there are %d machines: at most %d", total, engine.MaxMachines)
	}
	return groups, nil
}

// runProgram runs a program, or leaves a run behind.
func (a *app) runProgram(ctx context.Context, f *runFlags, args []string) error {
	groups, err := f.machineGroups()
	if err != nil {
		return err
	}
	if f.on == "" && isInRun() {
		return runInRun(args)
	}
	if f.isOnSlurm() {
		return a.runOnSlurm(ctx, f, groups, args)
	}
	if f.on == kubernetesEngine {
		return a.runOnKubernetes(ctx, f, groups, args)
	}
	chosen, err := chooseEngine(f)
	if err != nil {
		return err
	}
	return a.head(ctx, f, groups, args, chosen)
}

// head runs a program as the driver of a run whose head this process is, or leaves it behind.
func (a *app) head(ctx context.Context, f *runFlags, groups []engine.Group, args []string, chosen *chosenEngine) error {
	program, err := exec.LookPath(args[0])
	if err != nil {
		return &localError{fmt.Errorf("the program to run: %w", err)}
	}
	raylink, err := os.Executable()
	if err != nil {
		return &localError{err}
	}
	run := &engine.Run{
		Engine: chosen.engine, Groups: groups, Restarts: f.restarts, Listen: cmp.Or(f.listen, chosen.listen),
		Program: program, Args: args[1:], Checkpoint: f.checkpoint, Join: f.join, Raylink: raylink,
		Stdin: a.in, Stdout: a.out, Stderr: a.err,
		Say: a.say,
	}
	switch {
	case f.submits(chosen):
		return a.submitToRay(ctx, f, run, args)
	case f.dryRun:
		return a.write(run.Plan())
	case f.detach:
		return a.detach(ctx, chosen, run, args)
	case f.record != "":
		return a.runDetached(ctx, run, f.record)
	}
	if a.in == os.Stdin && isTerminal(os.Stdin) {
		run.Stdin = nil // a program in a process group of its own may not read the terminal
	}
	exit, err := doRun(ctx, run)
	if err != nil {
		return &localError{err}
	}
	if exit != 0 {
		return &exitError{exit}
	}
	return nil
}

// doRun runs a program with a directory of its own, of which nothing is left.
func doRun(ctx context.Context, run *engine.Run) (exit int, err error) {
	home, err := engine.NewHome()
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, home.Remove()) }()
	run.Directory = home.Path
	return run.Do(ctx)
}

// chosenEngine is an engine by the name that --on gives it.
type chosenEngine struct {
	name     string
	engine   engine.Engine
	detached engine.Detached
	listen   string // where Brain listens by default
}

// engineNames are the values of --on.
func engineNames() []string { return []string{localEngine, slurmEngine, rayEngine, kubernetesEngine} }

func chooseEngine(f *runFlags) (*chosenEngine, error) {
	switch {
	case f.on == rayEngine, f.on == "" && ray.IsInside():
		return chooseRay(f)
	case f.on == "", f.on == localEngine:
		return &chosenEngine{localEngine, local.Engine{}, local.Detached{}, "127.0.0.1:0"}, nil
	}
	return nil, usagef("--on: there is no engine %q; the engines are %s", f.on, strings.Join(engineNames(), ", "))
}

// say prints a line about a run.
func (a *app) say(line string) {
	_, _ = fmt.Fprintf(a.err, "raylink run: %s\n", line) // a terminal that is gone loses lines
}

// exitError is the exit code of a program that was run; it has printed itself what went wrong.
type exitError struct{ code int }

// Error implements error.
func (e *exitError) Error() string {
	return fmt.Sprintf("the program has ended with exit code %d", e.code)
}
