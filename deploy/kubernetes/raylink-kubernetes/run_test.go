package main

import (
	"bytes"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/raylink/raylink/internal/engine/kubernetes/wire"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("k8s.io/klog/v2.(*loggingT).flushDaemon"))
}

// running is a run against an API server of the test.
type running struct {
	*apiServer

	stop, dead chan struct{}
	result     chan wire.Result
	out        bytes.Buffer

	lines sync.Mutex
	said  []string
}

func startRun(t *testing.T, change func(*wire.Run, *apiServer)) *running {
	t.Helper()
	r := &running{apiServer: newAPIServer(t), stop: make(chan struct{}), dead: make(chan struct{}), result: make(chan wire.Result, 1)}
	p := aPlan()
	if change != nil {
		change(p.run, r.apiServer)
	}
	s := &session{
		cluster: r.cluster(), plan: p, out: &r.out, stop: r.stop, dead: r.dead, beat: time.Hour,
		say: func(line string) {
			r.lines.Lock()
			defer r.lines.Unlock()
			r.said = append(r.said, line)
		},
	}
	if p.run.Restarts == 1 { // the test of deadlines has them move
		s.beat = 20 * time.Millisecond
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		r.result <- s.start(t.Context())
	}()
	t.Cleanup(func() { <-done })
	return r
}

func (r *running) end() wire.Result {
	r.t.Helper()
	select {
	case result := <-r.result:
		return result
	case <-time.After(20 * time.Second):
		r.lines.Lock()
		defer r.lines.Unlock()
		require.Fail(r.t, "the run does not end", "%v %v", r.said, r.left())
		return wire.Result{}
	}
}

func (r *running) awaitLine(part string) {
	r.t.Helper()
	require.Eventually(r.t, func() bool { return r.hasSaid(part) }, 10*time.Second, 5*time.Millisecond, part)
}

func (r *running) hasSaid(part string) bool {
	r.lines.Lock()
	defer r.lines.Unlock()
	return strings.Contains(strings.Join(r.said, "\n"), part)
}

func TestRunEndsWithTheExitCodeOfItsProgram(t *testing.T) {
	t.Parallel()
	r := startRun(t, func(_ *wire.Run, f *apiServer) {
		f.log = "2026-01-01T00:00:00.1Z hello\n2026-01-01T00:00:00.2Z world\n"
	})
	r.await("agents-workers")
	r.putPod(agentPod("a0", "0", corev1.PodStatus{Conditions: []corev1.PodCondition{
		{Type: corev1.PodScheduled, Status: corev1.ConditionFalse, Reason: "Unschedulable", Message: "0/3 nodes are available: 3 Insufficient cpu."},
	}}))
	r.awaitLine("workers-0 waits: Unschedulable: 0/3 nodes are available: 3 Insufficient cpu.")
	r.putPod(agentPod("a0", "0", ready()))
	r.awaitLine("workers-0 has joined: pod a0 on node-1 (1 of 3)")
	r.putPod(driverPod(programEnded(3)))
	result := r.end()
	assert.Equal(t, 3, result.Exit)
	assert.Empty(t, result.Error)
	assert.Equal(t, "hello\nworld\n", r.out.String())
	assert.Empty(t, r.left(), "nothing is left")
}

func TestNothingIsStartedThatTheServerRefuses(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		refuse func(method, path string, dryRun bool) (int, string)
		minor  string
		want   string
	}{
		"quota": {want: `exceeded quota: q, requested: count/jobs.batch=1`, refuse: func(_, path string, _ bool) (int, string) {
			if strings.Contains(path, "agents-trainers") {
				return 403, `jobs.batch "x" is forbidden: exceeded quota: q, requested: count/jobs.batch=1, used: count/jobs.batch=1, limited: count/jobs.batch=1`
			}
			return 0, ""
		}},
		"forbidden": {want: `cannot patch resource "secrets"`, refuse: func(_, path string, _ bool) (int, string) {
			if strings.Contains(path, "/secrets/") {
				return 403, `secrets "x" is forbidden: User "u" cannot patch resource "secrets"`
			}
			return 0, ""
		}},
		"old": {want: "1.29 or later is needed", minor: "28+"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := startRun(t, func(_ *wire.Run, f *apiServer) {
				f.refuse = c.refuse
				if c.minor != "" {
					f.minor = c.minor
				}
			})
			assert.Contains(t, r.end().Error, c.want)
			assert.False(t, r.made("DELETE", ""), "nothing was made")
			assert.Empty(t, r.left())
		})
	}
}

func TestRefusalInTheMiddleLeavesNothing(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		code    int
		message string
	}{
		"quota":    {403, "exceeded quota: q, requested: count/jobs.batch=1, used: count/jobs.batch=2, limited: count/jobs.batch=2"},
		"conflict": {409, `Apply failed with 1 conflict: conflict with "kubectl": .spec.parallelism`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := startRun(t, func(_ *wire.Run, f *apiServer) {
				f.refuse = func(_, path string, dryRun bool) (int, string) {
					if !dryRun && strings.Contains(path, "agents-workers") {
						return c.code, c.message
					}
					return 0, ""
				}
			})
			assert.Contains(t, r.end().Error, c.message)
			assert.True(t, r.made("PATCH", "agents-trainers?fieldManager"), "a part was applied")
			assert.Empty(t, r.left())
		})
	}
}

func TestLostMachineEndsTheRunWithItsCause(t *testing.T) {
	t.Parallel()
	r := startRun(t, nil)
	r.await("agents-workers")
	r.putPod(agentPod("a1", "1", corev1.PodStatus{
		Phase: corev1.PodFailed, Reason: "Evicted", Message: "The node was low on resource: memory.",
	}))
	assert.Equal(t, "the machine workers-1 is lost: Evicted: The node was low on resource: memory.", r.end().Error)
	assert.Empty(t, r.left())
}

func TestLostMachineIsAskedForAgain(t *testing.T) {
	t.Parallel()
	r := startRun(t, func(run *wire.Run, _ *apiServer) { run.Restarts = 1 })
	r.await("agents-workers")
	r.putPod(agentPod("a1", "1", ready()))
	r.awaitLine("workers-1 has joined")
	failed := corev1.PodStatus{Phase: corev1.PodFailed, ContainerStatuses: []corev1.ContainerStatus{{
		Name: agentContainer, State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: 137, Reason: "OOMKilled"}},
	}}}
	r.putPod(agentPod("a1", "1", failed))
	r.awaitLine("the machine workers-1 is lost: its container agent has ended with exit code 137: OOMKilled; it is asked for again")
	r.putPod(agentPod("a2", "1", ready()))
	r.awaitLine("workers-1 has joined: pod a2")
	job := r.object("/apis/batch/v1/namespaces/ns/jobs/raylink-abcdefgh-agents-workers")
	assert.EqualValues(t, 1, job["spec"].(map[string]any)["backoffLimit"])
	r.putPod(agentPod("a2", "1", failed))
	assert.Contains(t, r.end().Error, "the machine workers-1 is lost")
}

func (f *apiServer) object(path string) map[string]any {
	f.mu.Lock()
	defer f.mu.Unlock()
	require.NotNil(f.t, f.objects[path], path)
	return f.objects[path]
}

func TestWhatCanNeverRunEndsTheRun(t *testing.T) {
	t.Parallel()
	r := startRun(t, nil)
	r.await("agents-workers")
	r.putPod(agentPod("a0", "0", corev1.PodStatus{ContainerStatuses: []corev1.ContainerStatus{{
		Name: agentContainer, State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "ImagePullBackOff", Message: "pull access denied"}},
	}}}))
	assert.Equal(t, "workers-0 waits: ImagePullBackOff: pull access denied", r.end().Error)
	assert.Empty(t, r.left())
}

func TestQuotaOfPods(t *testing.T) {
	t.Parallel()
	const others = `pods "x" is forbidden: exceeded quota: q, requested: requests.cpu=2, used: requests.cpu=3, limited: requests.cpu=4`
	r := startRun(t, nil)
	r.await("agents-workers")
	event := corev1.Event{
		ObjectMeta: metav1.ObjectMeta{Name: "e1", Namespace: "ns"}, Type: corev1.EventTypeWarning, Reason: "FailedCreate", Message: others,
		InvolvedObject: corev1.ObjectReference{Kind: "Job", Name: "raylink-abcdefgh-agents-workers"},
	}
	r.put("/api/v1/namespaces/ns/events/e1", &event)
	r.awaitLine("waits: FailedCreate: " + others)
	event.Message = strings.ReplaceAll(others, "requested: requests.cpu=2", "requested: requests.cpu=4500m")
	r.put("/api/v1/namespaces/ns/events/e1", &event)
	assert.Contains(t, r.end().Error, "requested: requests.cpu=4500m")
}

func TestInterruptedRunStopsItsProgramFirst(t *testing.T) {
	t.Parallel()
	r := startRun(t, nil)
	r.await("agents-workers")
	r.putPod(agentPod("a0", "0", ready()))
	r.putPod(driverPod(corev1.PodStatus{}))
	r.awaitLine("has joined")
	close(r.stop)
	assert.Contains(t, r.end().Error, errStopped.Error())
	r.mu.Lock()
	defer r.mu.Unlock()
	var deleted []string
	for _, c := range r.watched {
		if c.Type == "DELETED" && strings.Contains(c.path, "/pods/") {
			deleted = append(deleted, c.path)
		}
	}
	require.Len(t, deleted, 2)
	assert.Contains(t, deleted[0], "raylink-abcdefgh-x1", "the driver's pod ends before the machines")
	assert.Empty(t, r.objects)
}

func TestRunIsRemovedWhenItsCommandDies(t *testing.T) {
	t.Parallel()
	r := startRun(t, nil)
	r.await("agents-workers")
	close(r.dead)
	assert.Contains(t, r.end().Error, errDead.Error())
	assert.Empty(t, r.left())
}

// TestDeadlineMovesWhileTheCommandLives shows what removes a run whose command has died with its
// machine: the job of the driver has a deadline, and owns all else.
func TestDeadlineMovesWhileTheCommandLives(t *testing.T) {
	t.Parallel()
	r := startRun(t, func(run *wire.Run, _ *apiServer) { run.Restarts = 1 })
	r.await("agents-workers")
	const path = "/apis/batch/v1/namespaces/ns/jobs/raylink-abcdefgh"
	deadline := func() float64 { return r.object(path)["spec"].(map[string]any)["activeDeadlineSeconds"].(float64) }
	assert.GreaterOrEqual(t, deadline(), float64(lease))
	require.Eventually(t, func() bool { return deadline() > float64(lease) }, 10*time.Second, 10*time.Millisecond)
	spec := r.object(path)["spec"].(map[string]any)
	assert.EqualValues(t, keepAttached, spec["ttlSecondsAfterFinished"])
	for _, other := range r.left() {
		if other == path {
			continue
		}
		owner := r.object(other)["metadata"].(map[string]any)["ownerReferences"].([]any)[0].(map[string]any)
		assert.Equal(t, "uid-raylink-abcdefgh", owner["uid"], other)
		assert.Equal(t, true, owner["blockOwnerDeletion"], other)
	}
	close(r.stop)
	r.end()
}

func TestRunThatIsLeftBehind(t *testing.T) {
	t.Parallel()
	r := startRun(t, func(run *wire.Run, f *apiServer) {
		run.Detach = true
		f.log = "2026-01-01T00:00:00.1Z hello\n"
	})
	assert.True(t, r.end().Running)
	const path = "/apis/batch/v1/namespaces/ns/jobs/raylink-abcdefgh"
	spec := r.object(path)["spec"].(map[string]any)
	assert.Nil(t, spec["activeDeadlineSeconds"], "it has no deadline")
	assert.EqualValues(t, keepDetached, spec["ttlSecondsAfterFinished"])
	var out bytes.Buffer
	s := &session{
		cluster: r.cluster(), plan: &plan{run: new(wire.Run), target: wire.Target{ID: "abcdefgh", Namespace: "ns"}}, out: &out,
		say: func(string) {}, stop: make(chan struct{}), dead: make(chan struct{}), beat: time.Hour,
	}
	assert.True(t, s.state(t.Context()).Running)
	r.putPod(driverPod(programEnded(4)))
	assert.Equal(t, 4, s.follow(t.Context()).Exit)
	assert.Equal(t, "hello\n", out.String())
	var job batchv1.Job
	job.Name, job.Namespace, job.UID, job.Kind, job.APIVersion = "raylink-abcdefgh", "ns", "uid-raylink-abcdefgh", "Job", "batch/v1"
	job.Status.Conditions = []batchv1.JobCondition{{Type: batchv1.JobFailed, Status: corev1.ConditionTrue}}
	r.put(path, &job)
	result := s.state(t.Context())
	assert.False(t, result.Running)
	assert.Equal(t, 4, result.Exit)
	assert.Empty(t, s.end(t.Context(), true).Error)
	assert.Empty(t, r.left())
	assert.True(t, s.state(t.Context()).Gone)
}
