package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/raylink/raylink/internal/engine"
	"github.com/raylink/raylink/internal/engine/kubernetes"
	"github.com/raylink/raylink/internal/engine/local"
	"github.com/raylink/raylink/internal/engine/ray"
	"github.com/raylink/raylink/internal/engine/slurm"
	"github.com/raylink/raylink/runtime/rundir"
)

func isTerminal(f *os.File) bool {
	_, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	return err == nil
}

// records are the user's detached runs.
func records() (engine.Records, error) {
	data, err := rundir.DataDir()
	if err != nil {
		return engine.Records{}, &localError{err}
	}
	return engine.Records{Data: data}, nil
}

// detach leaves a run behind: a head in a session of its own, whose output goes to the record.
// Nothing is left of a run that does not start.
func (a *app) detach(ctx context.Context, chosen *chosenEngine, run *engine.Run, command []string) (err error) {
	if err := run.Engine.Check(ctx, run.Groups); err != nil {
		return &localError{err}
	}
	all, err := records()
	if err != nil {
		return err
	}
	record := &engine.Record{ID: engine.NewID(), Engine: chosen.name, Command: command, Started: time.Now(), State: engine.Running}
	if err := all.Create(record); err != nil {
		return &localError{err}
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, removeRecord(record))
		}
	}()
	output, err := os.OpenFile(record.Output(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return &localError{err}
	}
	defer func() { _ = output.Close() }() // the head has it
	ready, theirs, err := os.Pipe()
	if err != nil {
		return &localError{err}
	}
	defer func() { _ = ready.Close() }() // it carries nothing
	args := []string{"run", "--record", record.ID}
	for _, arg := range os.Args[2:] {
		if arg == "--" {
			break
		}
		if arg != "--detach" && arg != "--detach=true" {
			args = append(args, arg)
		}
	}
	head := exec.Command(run.Raylink, append(append(args, "--"), command...)...) //nolint:noctx,gosec // it outlives this process; the user has typed it
	head.Stdout, head.Stderr = output, output
	head.ExtraFiles = []*os.File{theirs}
	head.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = head.Start()
	_ = theirs.Close() // the head has it
	if err != nil {
		return &localError{fmt.Errorf("starting the run: %w", err)}
	}
	// The head closes its end once its record is its own.
	if _, err := ready.Read(make([]byte, 1)); err != nil && !errors.Is(err, io.EOF) {
		return &localError{err}
	}
	if held, unknown := record.IsHeld(); unknown != nil || !held {
		text, _ := os.ReadFile(record.Output()) // the error is worth printing without it
		return &localError{fmt.Errorf("the run did not start: %s", strings.TrimSpace(string(text)))}
	}
	return a.printLine(record.ID)
}

// runDetached is the head of a run that was left behind.
func (a *app) runDetached(ctx context.Context, run *engine.Run, id string) error {
	all, err := records()
	if err != nil {
		return err
	}
	record, err := all.Find(id)
	if err != nil {
		return &localError{err}
	}
	if err := record.Hold(); err != nil {
		return &localError{err}
	}
	record.Job = strconv.Itoa(os.Getpid())
	if err := record.Save(); err != nil {
		return &localError{err}
	}
	_ = os.NewFile(3, "ready").Close() // see detach
	run.Stdin = nil
	record.Exit, err = doRun(ctx, run)
	record.State = engine.Ended
	if err != nil {
		record.Exit, record.Error = exitFailed, err.Error()
		fmt.Fprintf(a.err, "raylink: %v\n", err)
	}
	if err := record.Save(); err != nil {
		return &localError{err}
	}
	return nil
}

// detachedRun finds a record and the engine that knows about it.
func detachedRun(ctx context.Context, id string) (*engine.Record, engine.Detached, error) {
	all, err := records()
	if err != nil {
		return nil, nil, err
	}
	record, err := all.Find(id)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, usagef("there is no run %q; see raylink runs", id)
	}
	if err != nil {
		return nil, nil, &localError{err}
	}
	detached, err := detachedEngine(record.Engine)
	if err == nil {
		err = detached.Update(ctx, record)
	}
	if err != nil {
		return nil, nil, &localError{err}
	}
	return record, detached, nil
}

func detachedEngine(name string) (engine.Detached, error) {
	switch name {
	case localEngine:
		return local.Detached{}, nil
	case slurmEngine:
		return slurm.Detached{}, nil
	case rayEngine:
		return ray.Jobs{}, nil
	case kubernetesEngine:
		return kubernetes.Detached{}, nil
	}
	return nil, fmt.Errorf("this version of raylink does not know the engine %q", name)
}

func (a *app) runsCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "runs",
		Short: "List the runs that were started by raylink run --detach",
		Long: `runs lists the runs that this user has left behind on this machine by raylink run --detach: those that are running, and
the latest that have ended. A run whose head was killed is shown as vanished.`,
		Args: between(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error { return a.runs(cmd.Context()) },
	}
}

func (a *app) runs(ctx context.Context) error {
	stored, err := records()
	if err != nil {
		return err
	}
	all, err := stored.All()
	if err != nil {
		return &localError{err}
	}
	rows := [][]string{{"ID", "ENGINE", "STATE", "EXIT", "AGE", "COMMAND"}}
	for _, record := range all {
		detached, err := detachedEngine(record.Engine)
		if err == nil {
			err = detached.Update(ctx, record)
		}
		if err != nil {
			return &localError{err}
		}
		exit := ""
		if record.State == engine.Ended {
			exit = strconv.Itoa(record.Exit)
		}
		rows = append(rows, []string{
			record.ID, record.Engine, string(record.State), exit, time.Since(record.Started).Round(time.Second).String(),
			printable(strings.Join(record.Command, " ")),
		})
	}
	if a.output == outputJSON {
		if all == nil {
			all = []*engine.Record{}
		}
		text, err := json.Marshal(map[string]any{"runs": all})
		if err != nil {
			return &localError{err}
		}
		return a.printLine(string(text))
	}
	return a.write(table(rows))
}

func (a *app) attachCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "attach ID",
		Short: "Print what a detached run prints, from its beginning, and end with its exit code",
		Long: `attach prints what a detached run prints, from its beginning, until it ends, and ends with the exit code of its program.
An interrupt ends the printing; the run goes on.`,
		Args: between(1, 1, "ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			record, detached, err := detachedRun(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if err := detached.Follow(cmd.Context(), record, a.out); err != nil {
				if cmd.Context().Err() != nil {
					return &localError{fmt.Errorf("the run goes on; raylink stop %s stops it", record.ID)}
				}
				return &localError{err}
			}
			switch {
			case record.State == engine.Vanished:
				return &localError{fmt.Errorf("the run %s has vanished: its head was killed, or its machine was restarted", record.ID)}
			case record.Exit != 0:
				return &exitError{record.Exit}
			}
			return nil
		},
	}
}

func (a *app) stopCommand() *cobra.Command {
	var now bool
	cmd := &cobra.Command{
		Use:   "stop ID",
		Short: "Stop a detached run in order, or at once with --now",
		Args:  between(1, 1, "ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			record, detached, err := detachedRun(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if record.State != engine.Running {
				return a.printLine(fmt.Sprintf("%s: %s", record.ID, record.State))
			}
			if err := detached.Stop(cmd.Context(), record, now); err != nil {
				return &localError{err}
			}
			if err := engine.AwaitEnd(cmd.Context(), detached, record); err != nil {
				return &localError{fmt.Errorf("the run %s has been asked to stop, and has not ended yet: %w", record.ID, err)}
			}
			return a.printLine(fmt.Sprintf("%s: %s", record.ID, record.State))
		},
	}
	cmd.Flags().BoolVar(&now, "now", false, "end it at once, without a checkpoint")
	return cmd
}
