package slurm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/raylink/raylink/internal/backoff"
	"github.com/raylink/raylink/internal/engine"
)

// Job is a batch job whose head is a run.
type Job struct {
	// ID is Slurm's.
	ID string
	// Directory has the job's files, on a file system that the nodes share.
	Directory string
}

// The files in the directory of a job.
const (
	scriptFile = "job.sh"
	outputFile = "output"
	errorFile  = "errors"
	exitFile   = "exit.json"
	aliveFile  = "alive.json"
)

// Check returns Slurm's error if it would not take the job. It submits nothing.
func (s *Submission) Check(ctx context.Context) error {
	script, err := s.Script()
	if err != nil {
		return err
	}
	directory, err := os.MkdirTemp("", "raylink-slurm-check-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(directory) //nolint:errcheck // it is the system's temporary directory
	path := filepath.Join(directory, scriptFile)
	if err := os.WriteFile(path, []byte(script), 0o600); err != nil {
		return err
	}
	_, err = command(ctx, "sbatch", "--test-only", path)
	return err
}

// Submit submits the job. Its files are in a new directory below shared, which Remove removes. With
// a period the job ends when its submitter is gone, see [Job.Follow].
func (s *Submission) Submit(ctx context.Context, shared, id string, period time.Duration) (_ *Job, err error) {
	if err := s.Check(ctx); err != nil {
		return nil, err
	}
	script, err := s.Script()
	if err != nil {
		return nil, err
	}
	j := &Job{Directory: filepath.Join(shared, ".raylink-"+id)}
	if err := os.Mkdir(j.Directory, 0o700); err != nil {
		return nil, fmt.Errorf("slurm: making the directory of the job: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, j.Remove())
		}
	}()
	if err := os.WriteFile(j.path(scriptFile), []byte(script), 0o600); err != nil {
		return nil, err
	}
	if period > 0 {
		if err := j.beat(0, period); err != nil {
			return nil, err
		}
	}
	args := []string{"--parsable", "--open-mode=append", "--output=" + slurmPath(j.path(outputFile))}
	if period > 0 { // one that is left behind has a single output
		args = append(args, "--error="+slurmPath(j.path(errorFile)))
	}
	out, err := command(context.WithoutCancel(ctx), "sbatch", append(args, j.path(scriptFile), j.Directory)...)
	if err != nil {
		return nil, err
	}
	// The name of the cluster follows it where there are several.
	j.ID, _, _ = strings.Cut(strings.TrimSpace(out), ";")
	return j, nil
}

// slurmPath is a path in which nothing stands for anything else: Slurm replaces %j and the like.
func slurmPath(path string) string { return strings.ReplaceAll(path, "%", "%%") }

func (j *Job) path(name string) string { return filepath.Join(j.Directory, name) }

// Remove removes the files of a job that has ended.
func (j *Job) Remove() error { return os.RemoveAll(j.Directory) }

// Status is what Slurm says about a job.
type Status struct {
	// State is Slurm's own, such as PENDING, and Reason why it is so.
	State, Reason string
	// Known is unset once Slurm has forgotten the job, some minutes after its end.
	Known bool
}

// Over reports whether nothing of the job runs any more:
// https://slurm.schedmd.com/squeue.html#SECTION_JOB-STATE-CODES.
func (s Status) Over() bool {
	switch s.State {
	case "PENDING", "CONFIGURING", "RUNNING", "SUSPENDED", "COMPLETING", "REQUEUED", "RESIZING", "SIGNALING", "STAGE_OUT", "STOPPED":
		return false
	default:
		return true
	}
}

// hopeless reports whether a job waits for what does not change while it waits: it exceeds a limit
// that holds for one job. Whether Slurm accepts such jobs is its EnforcePartLimits. The reasons are
// those of https://slurm.schedmd.com/job_reason_codes.html, but for the account's, which
// is a text.
func (s Status) hopeless() bool {
	if s.State != "PENDING" {
		return false
	}
	switch s.Reason {
	case "PartitionTimeLimit", "PartitionNodeLimit", "MaxMemPerLimit", "BadConstraints", "AccountNotAllowed", "InvalidAccount", "InvalidQOS", "QOSNotAllowed":
		return true
	}
	perJob := strings.HasPrefix(s.Reason, "Assoc") || strings.HasPrefix(s.Reason, "QOS")
	return perJob && strings.Contains(s.Reason, "PerJob") || strings.HasPrefix(s.Reason, "Job's_account")
}

// Status asks Slurm about the job.
func (j *Job) Status(ctx context.Context) (Status, error) {
	out, err := command(ctx, "scontrol", "--oneliner", "show", "job", j.ID)
	if err != nil {
		if strings.Contains(err.Error(), "Invalid job id") {
			return Status{}, nil
		}
		return Status{}, err
	}
	leader, _, _ := strings.Cut(out, "\n")
	status := Status{State: field(leader, "JobState"), Reason: field(leader, "Reason"), Known: true}
	for component := range strings.Lines(out) { // of a heterogeneous job: all must have ended
		if other := (Status{State: field(component, "JobState")}); !other.Over() && status.Over() {
			status.State = other.State
		}
	}
	return status, nil
}

// State is what has become of the job, for the records of runs.
func (j *Job) State(ctx context.Context) (state engine.State, exit int, cause string, err error) {
	status, err := j.Status(ctx)
	if err != nil {
		return "", 0, "", err
	}
	if status.Known && !status.Over() {
		return engine.Running, 0, "", nil
	}
	result, err := j.result()
	switch {
	case err == nil:
		return engine.Ended, result.Exit, result.Error, nil
	case !errors.Is(err, fs.ErrNotExist):
		return "", 0, "", err
	case !status.Known:
		return engine.Vanished, 0, "Slurm does not know the job any more", nil
	default:
		return engine.Ended, 1, j.ended(status).Error(), nil
	}
}

// ended is the error of a job whose head has not said how its run has ended.
func (j *Job) ended(s Status) error {
	text := fmt.Sprintf("slurm: the job %s has ended: %s", j.ID, s.State)
	if s.Reason != "" && s.Reason != "None" {
		text += " (" + s.Reason + ")"
	}
	return errors.New(text)
}

// result is how a run has ended, as its head says.
type result struct {
	Exit  int    `json:"exit"`
	Error string `json:"error,omitempty"`
}

func (j *Job) result() (result, error) {
	var r result
	text, err := os.ReadFile(j.path(exitFile))
	if err != nil {
		return r, err
	}
	return r, json.Unmarshal(text, &r)
}

// Stop asks the head to stop the run in order, or has Slurm end everything at once.
func (j *Job) Stop(ctx context.Context, atOnce bool) error {
	status, err := j.Status(ctx)
	if err != nil || status.Over() {
		return err
	}
	if !atOnce && status.State != "PENDING" {
		_, err := command(ctx, "scancel", "--batch", "--signal=TERM", j.ID)
		return err
	}
	// Without a signal, Slurm lets the processes have up to its KillWait to end.
	if status.State != "PENDING" {
		if _, err := command(ctx, "scancel", "--full", "--signal=KILL", j.ID); err != nil {
			return err
		}
	}
	_, err = command(ctx, "scancel", j.ID)
	return err
}

// How often Slurm is asked about a job: soon after a change, and then less and less, for its
// controller serves all users. The head's word that the run has ended comes through the file.
const (
	askFirst = 200 * time.Millisecond
	askMost  = 10 * time.Second
)

// Follow copies the job's output until it has ended, and returns the exit code of its program; an
// error if the job has ended without one. say gets why the job waits, and when it runs. With a
// period, that of Submit, the job ends when this process does, and is cancelled if it could only
// wait for ever. The end of ctx only ends Follow.
func (j *Job) Follow(ctx context.Context, stdout, stderr io.Writer, period time.Duration, say func(line string)) (exit int, err error) {
	status, err := j.follow(ctx, stdout, stderr, period, say)
	if err != nil {
		return 0, err
	}
	r, err := j.result()
	if errors.Is(err, fs.ErrNotExist) {
		return 0, j.ended(status)
	}
	return r.Exit, err // its error is in the output
}

func (j *Job) follow(ctx context.Context, stdout, stderr io.Writer, period time.Duration, say func(line string)) (Status, error) {
	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	if period > 0 {
		running.Go(func() { j.live(ctx, period, say) })
	}
	over := make(chan struct{})
	ended := func() (bool, error) { //nolint:unparam // as Follow wants it
		select {
		case <-over:
			return true, nil
		default:
			return false, nil
		}
	}
	failed := make(chan error, 2)
	var followers sync.WaitGroup
	for file, to := range map[string]io.Writer{outputFile: stdout, errorFile: stderr} {
		followers.Go(func() {
			if err := engine.Follow(ctx, to, j.path(file), ended); err != nil && !errors.Is(err, fs.ErrNotExist) {
				failed <- err
			}
		})
	}
	status, err := j.await(ctx, period > 0, say)
	if err == nil {
		close(over)
	} else {
		cancel()
	}
	followers.Wait()
	if err != nil {
		return status, err
	}
	select {
	case err := <-failed:
		return status, fmt.Errorf("slurm: following the output of the job %s: %w", j.ID, err)
	default:
		return status, nil
	}
}

// await waits until the job is over. One that could only wait for ever is cancelled if it is ours.
func (j *Job) await(ctx context.Context, ours bool, say func(line string)) (Status, error) {
	ask := backoff.Backoff{First: askFirst, Max: askMost}
	file := time.NewTicker(askFirst)
	defer file.Stop()
	var last Status
	said := false
	for {
		status, err := j.Status(ctx)
		switch {
		case ctx.Err() != nil:
			return status, ctx.Err()
		case err != nil:
			say(err.Error()) // the controller may be away for a while
		case !status.Known || status.Over():
			return status, nil
		case ours && status.hopeless():
			if err := j.Stop(ctx, true); err != nil {
				return status, err
			}
			return status, fmt.Errorf("slurm: the job %s was cancelled, since it could only wait for ever: %s", j.ID, strings.ReplaceAll(status.Reason, "_", " "))
		case status != last:
			say(waits(j.ID, status))
			last = status
			ask.Reset()
		}
		next := time.NewTimer(ask.Next())
		for waiting := true; waiting; {
			select {
			case <-next.C:
				waiting = false
			case <-file.C:
				// Reading it is cheaper than a question to the controller.
				if _, err := j.result(); err == nil && !said {
					said, waiting = true, false
					ask.Reset()
				}
			case <-ctx.Done():
				waiting = false
			}
		}
		next.Stop()
	}
}

// waits says why a job waits.
func waits(id string, s Status) string {
	text := fmt.Sprintf("the job %s is %s", id, strings.ToLower(s.State))
	if s.State == "PENDING" && s.Reason != "" && s.Reason != "None" {
		text += ": " + s.Reason
	}
	return text
}
