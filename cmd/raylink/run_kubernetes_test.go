package main

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/raylink/raylink/internal/engine/kubernetes/wire"
	"github.com/raylink/raylink/internal/proctest"
)

// TestPodsOfARun has the processes of a run's pods: Brain has its CA from a mounted Secret, agent
// and client read the token from a file, and the agent ends when Brain has gone for good.
func TestPodsOfARun(t *testing.T) {
	ca := filepath.Join(t.TempDir(), "pki")
	_, stderr, exit := finish(t, exec.Command(filepath.Join(program, "raylink"), "ca", "make", ca))
	require.Zero(t, exit, stderr)
	token := filepath.Join(ca, "join.token")
	pod := func(name string, more ...string) []string {
		// The root of a volume is writable by all: the directories below it are the process's own.
		volume := proctest.Directory(t, "rl")
		require.NoError(t, os.Chmod(volume, 0o777))
		return environment(append(more, "RAYLINK_MACHINE="+name, "RAYLINK_TLS=1",
			"RAYLINK_DATA="+filepath.Join(volume, "own/data"), "RAYLINK_RUNTIME_DIR="+filepath.Join(volume, "own/run"))...)
	}
	b := background(t, pod("brain"), filepath.Join(program, "raylink"), "brain", "--pki", ca, "--listen", "127.0.0.1:0", "-o", "json")
	address := b.serving().Address
	joins := []string{"RAYLINK_BRAIN=" + address, "RAYLINK_TOKEN_FILE=" + token}
	agent := background(t, pod("agent", append(joins, "RAYLINK_RESOURCES=cpu=1500m,licence=2")...),
		filepath.Join(program, "raylink"), "agent", "--name", "workers-0", "--leave-after", "1s", "-o", "json")
	var joined struct {
		Machine   string `json:"machine"`
		Resources string `json:"resources"`
	}
	require.NoError(t, json.Unmarshal([]byte(agent.line()), &joined))
	assert.Equal(t, "workers-0", joined.Machine)
	assert.Contains(t, joined.Resources, "cpu=1.5,")
	assert.Contains(t, joined.Resources, "licence=2")
	await := exec.Command(filepath.Join(program, "raylink"), "machines", "--wait", "1", "--timeout", "20s")
	await.Env = pod("client", joins...)
	stdout, stderr, exit := finish(t, await)
	require.Zero(t, exit, stderr)
	assert.Contains(t, stdout, "workers-0")
	await = exec.Command(filepath.Join(program, "raylink"), "machines", "--wait", "2", "--timeout", "300ms")
	await.Env = pod("client", joins...)
	_, stderr, exit = finish(t, await)
	assert.Equal(t, exitFailed, exit)
	assert.Contains(t, stderr, "waiting for 2 machines: 1 have joined")

	assert.Zero(t, b.end(syscall.SIGTERM).ExitCode())
	select {
	case <-agent.ended:
		assert.Zero(t, agent.ProcessState.ExitCode())
	case <-time.After(patience):
		assert.Fail(t, "the agent does not leave")
	}
}

// inCluster returns the environment of a directory with a program for the cluster's side, which
// stores its request, and what it does then.
func inCluster(t *testing.T, then string) (env []string, request string) {
	t.Helper()
	bin := t.TempDir()
	request = filepath.Join(bin, "request")
	script := "#!/bin/bash\nread -r line; echo \"$line\" >" + request + "\n" + then + "\n"
	require.NoError(t, os.WriteFile(filepath.Join(bin, wire.Program), []byte(script), 0o700))
	return environment("PATH="+bin+":"+os.Getenv("PATH"), "RAYLINK_DATA="+t.TempDir(), "TMPDIR="+t.TempDir()), request
}

func onKubernetes(env []string, args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(program, "raylink"), append([]string{"run", "--on", "kubernetes"}, args...)...)
	cmd.Env = env
	return cmd
}

func TestRunOnKubernetes(t *testing.T) {
	t.Parallel()
	env, path := inCluster(t, `echo of the program; echo '{"target":{},"exit":3}' >&3`)
	stdout, stderr, exit := finish(t, onKubernetes(env, "--image", "app", "--group", "workers:machines=2,cpus=0.5", "--", "/app", "-n"))
	assert.Equal(t, 3, exit, stderr)
	assert.Equal(t, "of the program\n", stdout)
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	var request wire.Request
	require.NoError(t, json.Unmarshal(text, &request))
	assert.Equal(t, []string{"/app", "-n"}, request.Run.Command)
	assert.Equal(t, "app", request.Run.RaylinkImage)
	assert.Equal(t, "workers", request.Run.Groups[0].Labels["group"])
	assert.EqualValues(t, 500, request.Run.Groups[0].Resources["cpu"])
	assert.Equal(t, strings.TrimSpace(string(request.Run.PKI["join.token"])), request.Run.Token)
	assert.NotEmpty(t, request.Run.PKI["ca.key"])
}

func TestErrorOfKubernetesIsPrinted(t *testing.T) {
	t.Parallel()
	env, _ := inCluster(t, `echo '{"target":{},"exit":0,"error":"exceeded quota: q"}' >&3`)
	_, stderr, exit := finish(t, onKubernetes(env, "--image", "app", "--", "/app"))
	assert.Equal(t, exitFailed, exit)
	assert.Contains(t, stderr, "kubernetes: exceeded quota: q")
}

func TestInterruptReachesTheClusterInOrder(t *testing.T) {
	t.Parallel()
	env, _ := inCluster(t, `echo runs; read -r line; echo "{\"target\":{},\"error\":\"was asked to $line\"}" >&3`)
	p := background(t, env, filepath.Join(program, "raylink"), "run", "--on", "kubernetes", "--image", "app", "--", "/app")
	require.Equal(t, "runs", p.line())
	assert.Equal(t, exitFailed, p.end(os.Interrupt.(syscall.Signal)).ExitCode())
}

func TestRunLeftOnKubernetes(t *testing.T) {
	t.Parallel()
	env, path := inCluster(t, `case "$line" in
*'"operation":"start"'*) echo '{"target":{"id":"abc","namespace":"ns"},"running":true}' >&3 ;;
*'"operation":"state"'*) echo '{"target":{},"running":true}' >&3 ;;
*'"operation":"follow"'*) echo of the program; echo '{"target":{},"exit":4}' >&3 ;;
esac`)
	id, stderr, exit := finish(t, onKubernetes(env, "--image", "app", "--detach", "--", "/app"))
	require.Zero(t, exit, stderr)
	require.Equal(t, "abc\n", id)
	attach := exec.Command(filepath.Join(program, "raylink"), "attach", "abc")
	attach.Env = env
	stdout, stderr, exit := finish(t, attach)
	assert.Equal(t, 4, exit, stderr)
	assert.Equal(t, "of the program\n", stdout)
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	assert.Contains(t, string(text), `"namespace":"ns"`)
}

func TestProgramInAPodUsesItsRun(t *testing.T) {
	t.Parallel()
	cmd := exec.Command(filepath.Join(program, "raylink"), "run", "--machines", "5", "--", "sh", "-c", "echo $RAYLINK_BRAIN; exit 5")
	cmd.Env = environment("KUBERNETES_SERVICE_HOST=10.0.0.1", wire.RunVariable+"=abc", "RAYLINK_BRAIN=brain:6800")
	stdout, _, exit := finish(t, cmd)
	assert.Equal(t, 5, exit)
	assert.Equal(t, "brain:6800\n", stdout)
}
