package ray

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/raylink/raylink/internal/engine"
	"github.com/raylink/raylink/internal/machine"
	"github.com/raylink/raylink/internal/proctest"
)

func groupOf(t *testing.T, text string) engine.Group {
	t.Helper()
	g, err := engine.ParseGroup(text, engine.Group{})
	require.NoError(t, err)
	return g
}

func TestBundlesHaveRaysNamesAndUnits(t *testing.T) {
	groups := []engine.Group{groupOf(t, "a:machines=2,cpus=0.5,gpus=1,memory=1GiB,licence=2"), groupOf(t, "b")}
	first := map[string]float64{"CPU": 0.5, "GPU": 1, "memory": 1 << 30, "licence": 2}
	assert.Equal(t, []map[string]float64{first, first, {"CPU": 1}}, bundles(groups))
}

func TestAgentsHaveWhatTheirBundlesHave(t *testing.T) {
	request := engine.Request{Token: "secret", Groups: []engine.Group{groupOf(t, "a:cpus=2,label.role=x"), groupOf(t, "b:machines=2,gpus=1")}}
	var names []string
	for _, m := range startRequestOf(request).Machines {
		names = append(names, m.Name)
		assert.NotContains(t, m.Flags, "secret")
	}
	assert.Equal(t, []string{"a-0", "b-0", "b-1"}, names)
	machines := startRequestOf(request).Machines
	assert.Contains(t, machines[0].Flags, machine.Resources{machine.CPU: 2000, machine.GPU: 0}.String(), "GPUs that Ray did not allocate are not the agent's")
	assert.Contains(t, machines[1].Flags, machine.Resources{machine.CPU: 1000, machine.GPU: 1000}.String())
}

func TestAgentsListenWhereBrainDoes(t *testing.T) {
	groups := []engine.Group{groupOf(t, "a:cpus=2")}
	assert.Contains(t, startRequestOf(engine.Request{Brain: "127.0.0.1:7", Groups: groups}).Machines[0].Flags, "127.0.0.1:0", "they do not warn about it")
	assert.NotContains(t, startRequestOf(engine.Request{Brain: "192.0.2.1:7", Groups: groups}).Machines[0].Flags, "--listen")
	assert.NotContains(t, startRequestOf(engine.Request{Brain: "BRAIN", Groups: groups}).Machines[0].Flags, "--listen", "of a dry run")
}

func TestEntrypointIsWhatAShellTakesForTheSameWords(t *testing.T) {
	s := Submission{Raylink: "/bin/raylink", Program: "/opt/raylink", Flags: []string{"--group", "a:machines=2"}, Args: []string{"it's", "$HOME", ""}}
	assert.Contains(t, s.Entrypoint("/my python"), `export RAYLINK_PYTHON='/my python'; exec bin/raylink run --on ray --group a:machines=2 -- bin/program 'it'\''s' '$HOME' ''`)
	files, program := s.files()
	assert.Equal(t, map[string]string{"raylink": "/bin/raylink", "program": "/opt/raylink"}, files, "a program has a name of its own")
	assert.Equal(t, "program", program)
}

func TestGroupsTextIsParsedAsTheSameGroup(t *testing.T) {
	for _, text := range []string{"a:machines=3", "b:machines=1,cpus=0.5,memory=2GiB,label.x.io/zone=a,label.role=r"} {
		g := groupOf(t, text)
		assert.Equal(t, g, groupOf(t, g.Text()))
	}
}

// Ray may have the job when its submitter is interrupted: then it is known where it is.
func TestInterruptedSubmissionIsKnown(t *testing.T) {
	directory := t.TempDir()
	python := filepath.Join(directory, "python")
	script := "#!/bin/sh\ncd " + directory + "\n: > begun\nuntil test -e go; do sleep 0.01; done\necho '{\"job\": \"raylink-x\", \"address\": \"http://head\"}'\n"
	require.NoError(t, os.WriteFile(python, []byte(script), 0o700))
	t.Setenv(PythonEnv, python)
	record := &engine.Record{ID: "x", Engine: "ray"}
	require.NoError(t, engine.Records{Data: t.TempDir()}.Create(record))
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	defer func() { <-ended }()
	go func() {
		defer close(ended)
		assert.Eventually(t, func() bool { _, err := os.Stat(filepath.Join(directory, "begun")); return err == nil }, proctest.Patience, time.Millisecond)
		cancel()
		assert.NoError(t, os.WriteFile(filepath.Join(directory, "go"), nil, 0o600))
	}()
	require.NoError(t, Jobs{}.Submit(ctx, record, Submission{Raylink: "/bin/true", Program: "/bin/true"}))
	assert.Equal(t, "raylink-x", record.Job)
	require.Error(t, ctx.Err(), "it was interrupted")
}
