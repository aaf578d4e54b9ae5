package slurm

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/raylink/raylink/internal/engine"
	"github.com/raylink/raylink/internal/machine"
	"github.com/raylink/raylink/internal/proctest"
)

func envOf(vars map[string]string) Env {
	return func(name string) (string, bool) {
		value, ok := vars[name]
		return value, ok
	}
}

func TestPlaces(t *testing.T) {
	t.Parallel()
	step := map[string]string{"SLURM_JOB_ID": "7", "SLURM_PROCID": "1", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "3", "SLURM_SRUN_COMM_PORT": "4000"}
	assert.Equal(t, InStep, envOf(step).Find())
	assert.Equal(t, Outside, envOf(nil).Find())
	batch := map[string]string{"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_NTASKS": "3", "SLURM_JOB_NUM_NODES": "3"}
	assert.Equal(t, InAllocation, envOf(batch).Find(), "a batch script has a rank, and is no step")
	require.NoError(t, envOf(batch).CheckGroups([]engine.Group{{Name: "a", Machines: 2}, {Name: "b", Machines: 1}}))
	require.ErrorContains(t, envOf(batch).CheckGroups([]engine.Group{{Name: "a", Machines: 2}}), "has 3 nodes, and the run asks for 2 machines")
}

func TestResourcesOfTasks(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		vars map[string]string
		want string
	}{
		{map[string]string{"SLURM_CPUS_PER_TASK": "4", "SLURM_MEM_PER_NODE": "1024"}, "cpu=4,gpu=0,memory=1GiB"},
		{map[string]string{"SLURM_CPUS_ON_NODE": "8", "SLURM_STEP_TASKS_PER_NODE": "1,4(x2)", "SLURM_NODEID": "2", "SLURM_MEM_PER_NODE": "4096"}, "cpu=2,gpu=0,memory=1GiB"},
		{map[string]string{"SLURM_CPUS_PER_TASK": "2", "SLURM_MEM_PER_CPU": "512"}, "cpu=2,gpu=0,memory=1GiB"},
		{map[string]string{"SLURM_CPUS_PER_TASK": "2", "CUDA_VISIBLE_DEVICES": "0,1"}, "cpu=2"},
		{map[string]string{"SLURM_GPUS_ON_NODE": "2"}, "gpu=2"},
		{map[string]string{"SLURM_MEM_PER_NODE": "0"}, "gpu=0"},
	} {
		assert.Equal(t, test.want, envOf(test.vars).Resources().String(), "%v", test.vars)
	}
}

func TestScript(t *testing.T) {
	t.Parallel()
	s := &Submission{
		Raylink: "/shared/raylink", Program: "/shared/my program", Args: []string{"--x", "it's"}, Name: "raylink-program",
		Partition: "gpu", Time: "1:00:00", Account: "lab", QOS: "high", Gres: "tmp:10", Options: []string{"--comment=a b"},
		Flags: []string{"--checkpoint=save $RAYLINK_BRAIN"},
		Groups: []engine.Group{
			{Name: "trainers", Machines: 1, Resources: machine.Resources{"cpu": 7500, "gpu": 2000, "memory": 1<<30 + 1}, Labels: machine.Labels{"role": "trainer"}},
			{Name: "workers", Machines: 16, Resources: machine.Resources{"cpu": 8000}},
		},
	}
	script, err := s.Script()
	require.NoError(t, err)
	want, err := os.ReadFile("testdata/job.sh")
	require.NoError(t, err)
	assert.Equal(t, string(want), script)
	s.Options = []string{"--comment=a\n#SBATCH --account=other"}
	_, err = s.Script()
	require.ErrorContains(t, err, "control character")
}

// A task that finds the file of an earlier use, whose head is gone or another one, waits for its
// own.
func TestTasksFindTheirHead(t *testing.T) {
	t.Parallel()
	directory := filepath.Join(t.TempDir(), "meeting")
	arrivals := make(chan int, 4)
	note := func(number int, _ string, e event, _ string) {
		if e == arrived {
			arrivals <- number
		}
	}
	stale, err := openMeeting(directory, "127.0.0.1", note)
	require.NoError(t, err)
	p, err := readPlace(directory)
	require.NoError(t, err)
	require.NoError(t, stale.close())
	require.NoDirExists(t, directory)

	// Another process has the address of the earlier head meanwhile, and the secret differs.
	other, err := openMeeting(directory, "127.0.0.1", note)
	require.NoError(t, err)
	p.Address = other.place.Address
	_, err = p.dial(t.Context())
	require.ErrorContains(t, err, "is not the head of this run")
	p.Fingerprint = other.place.Fingerprint
	conn, err := p.dial(t.Context())
	require.NoError(t, err)
	require.NoError(t, send(conn, message{Secret: p.Secret, Number: 5}))
	require.NoError(t, conn.SetReadDeadline(time.Now().Add(10*time.Second)))
	_, err = conn.Read(make([]byte, 1))
	require.ErrorIs(t, err, io.EOF, "a stranger is refused")
	require.NoError(t, conn.Close())
	require.NoError(t, other.close())

	// The file of an earlier use is there when the task begins.
	require.NoError(t, p.write(directory))
	task := &Task{Env: envOf(nil), Directory: directory, Number: 2, Patience: time.Minute, Output: func(string) {}}
	ended := make(chan error, 1)
	go func() { ended <- task.Run(t.Context()) }()
	head, err := openMeeting(directory, "127.0.0.1", note)
	require.NoError(t, err)
	assert.Equal(t, 2, <-arrivals)
	head.release(t.Context(), func() bool { return true })
	require.NoError(t, <-ended)
	require.NoError(t, head.close())
}

func TestTasksEndWithTheirHead(t *testing.T) {
	t.Parallel()
	directory := filepath.Join(t.TempDir(), "meeting")
	here := make(chan struct{}, 1)
	m, err := openMeeting(directory, "127.0.0.1", func(_ int, _ string, e event, _ string) {
		if e == arrived {
			here <- struct{}{}
		}
	})
	require.NoError(t, err)
	task := &Task{Env: envOf(nil), Directory: directory, Patience: time.Minute, Raylink: "/bin/false", Output: func(string) {}}
	ended := make(chan error, 1)
	go func() { ended <- task.Run(t.Context()) }()
	<-here
	m.tell(0, message{Start: &agentStart{Name: "a"}})
	require.NoError(t, m.close())
	require.ErrorIs(t, <-ended, errHeadGone)
}

// A file that another user could have written is not used.
func TestForeignMeetingsAreRefused(t *testing.T) {
	t.Parallel()
	directory := filepath.Join(t.TempDir(), "meeting")
	require.NoError(t, place{Address: "127.0.0.1:1"}.write(directory))
	_, err := readPlace(directory)
	require.NoError(t, err)
	require.NoError(t, os.Chmod(directory, 0o755))
	_, err = readPlace(directory)
	require.ErrorContains(t, err, "does not belong to this user alone")
	task := &Task{Env: envOf(nil), Directory: directory, Patience: 50 * time.Millisecond}
	require.ErrorContains(t, task.Run(t.Context()), "no head has been found")
}

func TestWatchNoticesSilence(t *testing.T) {
	t.Parallel()
	j := &Job{Directory: t.TempDir()}
	j.Watch(t.Context(), func() { assert.Fail(t, "a job that was left behind has no submitter") })
	require.NoError(t, j.beat(0, time.Millisecond))
	ctx, cancel := context.WithCancel(t.Context())
	lives := make(chan struct{})
	go func() {
		j.live(ctx, time.Millisecond, func(line string) { t.Log(line) })
		close(lives)
	}()
	gone := make(chan struct{})
	go j.Watch(t.Context(), func() { close(gone) })
	cancel()
	<-lives
	<-gone
}

func TestErrorsHaveSlurmsWords(t *testing.T) {
	t.Parallel()
	assert.Equal(t, "invalid partition specified: x; Batch job submission failed: Invalid partition name specified",
		words("sbatch: error: invalid partition specified: x\nsbatch: error: Batch job submission failed: Invalid partition name specified\n"))
	_, err := command(t.Context(), "no-such-command-of-slurm")
	require.ErrorContains(t, err, "there is no no-such-command-of-slurm here")
}

// Slurm may have the job when its submitter is interrupted: then its id is known.
func TestInterruptedSubmissionIsKnown(t *testing.T) {
	bin, shared := t.TempDir(), t.TempDir()
	script := "#!/bin/sh\ntest \"$1\" = --test-only && exit\n: > \"$SHARED/begun\"\nuntil test -e \"$SHARED/go\"; do sleep 0.01; done\necho '7;cluster'\n"
	require.NoError(t, os.WriteFile(filepath.Join(bin, "sbatch"), []byte(script), 0o700))
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	t.Setenv("SHARED", shared)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		for {
			if _, err := os.Stat(filepath.Join(shared, "begun")); err == nil || t.Context().Err() != nil {
				break
			}
			proctest.Pause(proctest.Poll)
		}
		cancel()
		assert.NoError(t, os.WriteFile(filepath.Join(shared, "go"), nil, 0o600))
	}()
	s := &Submission{Raylink: "/bin/true", Program: "/bin/true", Name: "test", Groups: []engine.Group{{Name: "machines", Machines: 1}}}
	job, err := s.Submit(ctx, shared, "id", 0)
	require.NoError(t, err)
	assert.Equal(t, "7", job.ID)
	require.Error(t, ctx.Err(), "it was interrupted")
}

func TestJobsThatCanOnlyWait(t *testing.T) {
	for text, hopeless := range map[string]bool{
		"PENDING PartitionTimeLimit":                   true,
		"PENDING MaxMemPerLimit":                       true,
		"PENDING QOSMaxCpuPerJobLimit":                 true,
		"PENDING AssocMaxWallDurationPerJobLimit":      true,
		"PENDING Job's_account_not_known,_so_it_can't": true,
		"PENDING AssocMaxJobsLimit":                    false, // other jobs end
		"PENDING QOSGrpCpuLimit":                       false,
		"PENDING Resources":                            false,
		"PENDING PartitionDown":                        false,
		"RUNNING PartitionTimeLimit":                   false,
	} {
		state, reason, _ := strings.Cut(text, " ")
		assert.Equal(t, hopeless, Status{State: state, Reason: reason}.hopeless(), text)
	}
}
