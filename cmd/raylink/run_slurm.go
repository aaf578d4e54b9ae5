package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/raylink/raylink/internal/engine"
	"github.com/raylink/raylink/internal/engine/slurm"
	"github.com/raylink/raylink/runtime/rundir"
)

const slurmEngine = "slurm"

// slurmFlags are the flags of `raylink run --on slurm`.
type slurmFlags struct {
	partition, time, account, qos, gres string
	options                             []string
	// shared is a directory that all nodes see.
	shared string
	// submission is the directory of the submission that this process is the head of.
	submission string
}

func (s *slurmFlags) add(flags *pflag.FlagSet) {
	flags.StringVar(&s.partition, "partition", "", "slurm: the partition")
	flags.StringVar(&s.time, "time", "", "slurm: the time limit; two minutes before it the run is asked to stop")
	flags.StringVar(&s.account, "account", "", "slurm: the account")
	flags.StringVar(&s.qos, "qos", "", "slurm: the quality of service")
	flags.StringVar(&s.gres, "gres", "", "slurm: generic resources of each machine, beside --gpus")
	flags.StringArrayVar(&s.options, "sbatch", nil, "slurm: another option of sbatch, such as --sbatch=--constraint=a100; may be repeated")
	flags.StringVar(&s.shared, "shared-directory", "", "slurm: a directory that all nodes share (default: the working directory)")
	flags.StringVar(&s.submission, "slurm-submission", "", "the directory of the submission that this run belongs to")
	if err := flags.MarkHidden("slurm-submission"); err != nil {
		panic(err) // the flag was defined above
	}
}

// isOnSlurm reports whether the engine is Slurm: that of the allocation that this process is in.
func (f *runFlags) isOnSlurm() bool {
	return f.on == slurmEngine || f.on == "" && slurm.FromOS().Find() != slurm.Outside
}

func (a *app) runOnSlurm(ctx context.Context, f *runFlags, groups []engine.Group, args []string) error {
	env := slurm.FromOS()
	if env.Find() == slurm.Outside {
		return a.submitToSlurm(ctx, f, groups, args)
	}
	if f.dryRun || f.detach {
		return usagef("--dry-run and --detach are for jobs that are submitted, and this process is in the job %s", os.Getenv("SLURM_JOB_ID"))
	}
	shared, err := filepath.Abs(f.slurm.shared)
	if err != nil {
		return &localError{err}
	}
	if f.allMachines {
		if groups, err = asInAllocation(env, groups[0]); err != nil {
			return &localError{err}
		}
	}
	err = env.CheckGroups(groups)
	if env.Find() == slurm.InStep && env.Rank() > 0 {
		if err != nil {
			return nil //nolint:nilerr // the head reports it
		}
		return a.runSlurmTask(ctx, env, env.Meeting(shared), env.Rank()-1, f.join)
	}
	if err == nil {
		err = a.headOnSlurm(ctx, f, env, shared, groups, args)
	} else {
		err = &localError{err}
	}
	if f.slurm.submission == "" {
		return err
	}
	// The submitter reads the exit code, and the error in the output of the job.
	if err == nil {
		return (&slurm.Job{Directory: f.slurm.submission}).Finish(exitOK, nil)
	}
	exit := a.writeError(err)
	failed := err
	if _, ended := errors.AsType[*exitError](err); ended {
		failed = nil
	}
	return errors.Join(&exitError{exit}, (&slurm.Job{Directory: f.slurm.submission}).Finish(exit, failed))
}

// asInAllocation are the groups that an allocation is made of: one, or its components.
func asInAllocation(env slurm.Env, like engine.Group) ([]engine.Group, error) {
	components, err := env.Machines()
	if err != nil {
		return nil, err
	}
	var groups []engine.Group
	for i, n := range components {
		g := like
		g.Machines = n
		if len(components) > 1 {
			g.Name += "-" + strconv.Itoa(i)
		}
		groups = append(groups, g)
	}
	return groups, nil
}

// headOnSlurm is the head of a run in an allocation or a step.
func (a *app) headOnSlurm(ctx context.Context, f *runFlags, env slurm.Env, shared string, groups []engine.Group, args []string) (err error) {
	raylink, err := os.Executable()
	if err != nil {
		return &localError{err}
	}
	var host string
	if f.listen != "" {
		host, _, err = net.SplitHostPort(f.listen)
	} else {
		host, err = env.Host(ctx)
	}
	if err != nil {
		return &localError{err}
	}
	if f.slurm.submission != "" {
		shared = f.slurm.submission // which the submitter removes, also when this process is killed
	}
	on, err := slurm.Open(env, shared, host, raylink)
	if err != nil {
		return &localError{err}
	}
	defer func() { err = errors.Join(err, on.Close(context.WithoutCancel(ctx))) }()
	// The head and an agent of the same node share its memory, and are one machine.
	if name := env.Identity(false); name != "" && os.Getenv(rundir.MachineEnv) == "" {
		if err := os.Setenv(rundir.MachineEnv, name); err != nil {
			return &localError{err}
		}
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if f.slurm.submission != "" {
		go (&slurm.Job{Directory: f.slurm.submission}).Watch(ctx, func() {
			a.say(slurm.ErrSubmitterGone.Error())
			cancel(slurm.ErrSubmitterGone)
		})
	}
	return a.head(ctx, f, groups, args, &chosenEngine{name: slurmEngine, engine: on, listen: net.JoinHostPort(host, "0")})
}

// submitToSlurm submits a batch job whose head is the run, and follows it.
func (a *app) submitToSlurm(ctx context.Context, f *runFlags, groups []engine.Group, args []string) error {
	s, shared, err := f.submission(groups, args)
	if err != nil {
		return &localError{err}
	}
	if f.dryRun {
		script, err := s.Script()
		if err != nil {
			return &localError{err}
		}
		_, err = fmt.Fprint(a.out, script)
		return err
	}
	id, period := engine.NewID(), slurm.DefaultPeriod
	if f.detach {
		period = 0
	}
	job, err := s.Submit(ctx, shared, id, period)
	if err != nil {
		return &localError{err}
	}
	if f.detach {
		record := &engine.Record{ID: id, Engine: slurmEngine, Command: args, Started: time.Now(), State: engine.Running, Job: job.String()}
		all, err := records()
		if err == nil {
			err = ctx.Err() // interrupted while it was submitted
		}
		if err == nil {
			err = all.Create(record)
		}
		if err != nil {
			return &localError{errors.Join(err, job.Stop(context.WithoutCancel(ctx), true), job.Remove())}
		}
		return a.printLine(id)
	}
	a.say("the job " + job.ID + " is submitted")
	return a.followSlurmJob(ctx, job, period)
}

// followSlurmJob follows a job until its end, and removes its files. The first interrupt stops it
// in order, and the second at once.
func (a *app) followSlurmJob(ctx context.Context, job *slurm.Job, period time.Duration) error {
	following := context.WithoutCancel(ctx)
	second := make(chan os.Signal, 1)
	stop := func(atOnce bool) {
		if err := job.Stop(following, atOnce); err != nil {
			a.say(err.Error())
		}
	}
	unfollow := context.AfterFunc(ctx, func() {
		// By default a second signal would end this process, and not the job.
		signal.Ignore(os.Interrupt, syscall.SIGTERM) // forgets the handler that there is
		signal.Notify(second, os.Interrupt, syscall.SIGTERM)
		a.say("interrupted: the job " + job.ID + " is asked to stop in order; interrupt again to end it at once")
		stop(false)
		<-second
		stop(true)
	})
	defer unfollow()
	defer close(second)
	exit, err := job.Follow(following, a.out, a.err, period, a.say)
	if err = errors.Join(err, job.Remove()); err != nil {
		return &localError{err}
	}
	if exit != exitOK {
		return &exitError{exit}
	}
	return nil
}

// submission is the job that the flags describe, and the directory that its nodes share.
func (f *runFlags) submission(groups []engine.Group, args []string) (*slurm.Submission, string, error) {
	program, err := exec.LookPath(args[0])
	if err != nil {
		return nil, "", fmt.Errorf("the program to run: %w", err)
	}
	if program, err = filepath.Abs(program); err != nil {
		return nil, "", err
	}
	raylink, err := os.Executable()
	if err != nil {
		return nil, "", err
	}
	shared, err := filepath.Abs(f.slurm.shared)
	if err != nil {
		return nil, "", err
	}
	s := &slurm.Submission{
		Raylink: raylink, Program: program, Args: args[1:], Groups: groups, Name: "raylink-" + filepath.Base(program),
		Partition: f.slurm.partition, Time: f.slurm.time, Account: f.slurm.account, QOS: f.slurm.qos, Gres: f.slurm.gres, Options: f.slurm.options,
		Flags: []string{"--join-timeout=" + f.join.String()},
	}
	for _, flag := range []struct{ name, value string }{
		{"--listen", f.listen}, {"--checkpoint", f.checkpoint}, {"--shared-directory", f.slurm.shared},
	} {
		if flag.value != "" {
			s.Flags = append(s.Flags, flag.name+"="+flag.value)
		}
	}
	if f.restarts > 0 {
		s.Flags = append(s.Flags, "--restart-machines="+strconv.Itoa(f.restarts))
	}
	return s, shared, nil
}

// slurmTaskCommand is what srun runs for each machine of an allocation.
func (a *app) slurmTaskCommand() *cobra.Command {
	var directory string
	var first int
	var join time.Duration
	cmd := &cobra.Command{
		Use:    slurm.TaskCommand,
		Short:  "Run an agent for the head of a run in a Slurm allocation",
		Hidden: true,
		Args:   between(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error {
			env := slurm.FromOS()
			return a.runSlurmTask(cmd.Context(), env, directory, first+env.Rank(), join)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&directory, "directory", "", "where the head is found")
	flags.IntVar(&first, "first", 0, "the number of the machine of task 0")
	flags.DurationVar(&join, "join-timeout", time.Minute, "how long the head may take to be there")
	return cmd
}

func (a *app) runSlurmTask(ctx context.Context, env slurm.Env, directory string, number int, patience time.Duration) error {
	raylink, err := os.Executable()
	if err != nil {
		return &localError{err}
	}
	task := &slurm.Task{
		Env: env, Directory: directory, Number: number, Raylink: raylink, Patience: patience,
		Output: func(line string) { _, _ = fmt.Fprintln(a.err, line) }, // srun may be gone
	}
	if err := task.Run(ctx); err != nil {
		return &localError{err}
	}
	return nil
}
