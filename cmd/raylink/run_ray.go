package main

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/raylink/raylink/internal/engine"
	"github.com/raylink/raylink/internal/engine/ray"
)

const rayEngine = "ray"

// rayFlags adds the flags of `raylink run` for Ray.
func rayFlags(cmd *cobra.Command, o *ray.Options) {
	flags := cmd.Flags()
	flags.StringVar(&o.Strategy, "ray-strategy", "",
		"Ray: STRICT_SPREAD, SPREAD, PACK or STRICT_PACK (default: the first if there is a node for each machine, else SPREAD)")
	flags.BoolVar(&o.Wait, "ray-wait", false, "Ray: wait for nodes that are not there yet, as with an autoscaler, and refuse no request as impossible")
}

// chooseRay returns the engine of --on ray.
func chooseRay(f *runFlags) (*chosenEngine, error) {
	switch f.ray.Strategy {
	case "", "STRICT_SPREAD", "SPREAD", "PACK", "STRICT_PACK":
	default:
		return nil, usagef("--ray-strategy %s: Ray has STRICT_SPREAD, SPREAD, PACK and STRICT_PACK", f.ray.Strategy)
	}
	return &chosenEngine{name: rayEngine, engine: &ray.Engine{Options: f.ray}, detached: ray.Jobs{}}, nil
}

// raySubmission is what a job runs: the same flags on the cluster.
func raySubmission(f *runFlags, run *engine.Run) ray.Submission {
	flags := []string{"--join-timeout", f.join.String(), "--restart-machines", strconv.Itoa(f.restarts)}
	for _, g := range run.Groups {
		flags = append(flags, "--group", g.Text())
	}
	for _, set := range []struct{ flag, value string }{{"--listen", f.listen}, {"--checkpoint", f.checkpoint}, {"--ray-strategy", f.ray.Strategy}} {
		if set.value != "" {
			flags = append(flags, set.flag, set.value)
		}
	}
	if f.ray.Wait {
		flags = append(flags, "--ray-wait")
	}
	return ray.Submission{Raylink: run.Raylink, Program: run.Program, Flags: flags, Args: run.Args}
}

// submits reports whether a run becomes a job of Ray's.
func (f *runFlags) submits(chosen *chosenEngine) bool {
	return chosen.name == rayEngine && (f.detach || ray.IsDashboard())
}

// submitToRay submits a run. Unless it is to be left behind, it follows the job, and stops it if
// ctx ends.
func (a *app) submitToRay(ctx context.Context, f *runFlags, run *engine.Run, command []string) error {
	submission := raySubmission(f, run)
	if f.dryRun {
		return a.write(fmt.Sprintf("ray job submit --working-dir DIRECTORY -- %s\n", submission.Entrypoint("PYTHON")) + run.Plan())
	}
	all, err := records()
	if err != nil {
		return err
	}
	record := &engine.Record{ID: engine.NewID(), Engine: rayEngine, Command: command, Started: time.Now(), State: engine.Running}
	if err := all.Create(record); err != nil {
		return &localError{err}
	}
	if err := (ray.Jobs{}).Submit(ctx, record, submission); err != nil {
		return &localError{cmp.Or(removeRecord(record), err)}
	}
	if f.detach && ctx.Err() == nil {
		return a.printLine(record.ID)
	}
	return a.followRay(ctx, record) // which stops the job if it was interrupted
}

// removeRecord removes the record of a run that did not start.
func removeRecord(record *engine.Record) error { return os.RemoveAll(record.Directory()) }

// followRay prints what a job prints, and ends with its exit code.
func (a *app) followRay(ctx context.Context, record *engine.Record) error {
	err := ray.Jobs{}.Follow(ctx, record, a.out)
	if ctx.Err() != nil {
		stopping := context.WithoutCancel(ctx)
		if err = (ray.Jobs{}).Stop(stopping, record, false); err == nil {
			err = engine.AwaitEnd(stopping, ray.Jobs{}, record)
		}
	}
	switch {
	case err != nil:
		return &localError{err}
	case record.Exit != 0:
		return &exitError{record.Exit}
	}
	return nil
}
