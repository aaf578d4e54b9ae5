package ray

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/raylink/raylink/internal/engine"
	"github.com/raylink/raylink/internal/machine"
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
