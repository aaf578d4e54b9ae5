package engine

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/raylink/raylink/internal/machine"
)

func TestParseGroup(t *testing.T) {
	t.Parallel()
	defaults := Group{Machines: 3, Resources: machine.Resources{machine.CPU: 2000}, Labels: machine.Labels{"zone": "a"}}
	g, err := ParseGroup("trainers:machines=2,gpus=8,memory=16GiB,licence=1,label.role=trainer,label.zone=b", defaults)
	require.NoError(t, err)
	assert.Equal(t, Group{
		Name: "trainers", Machines: 2,
		Resources: machine.Resources{machine.CPU: 2000, machine.GPU: 8000, machine.Memory: 16 << 30, "licence": 1000},
		Labels:    machine.Labels{"role": "trainer", "zone": "b"},
	}, g)
	assert.Equal(t, machine.Labels{"zone": "a"}, defaults.Labels, "the defaults are not modified")
	assert.Equal(t, []string{
		"--name", "trainers-1", "--label", "group=trainers", "--label", "role=trainer", "--label", "zone=b",
	}, g.AgentFlags(1))
	assert.Equal(t, []string{"--resources", "cpu=2,gpu=8,licence=1,memory=16GiB"}, ResourceFlags(g.Resources))

	g, err = ParseGroup("a:tpus=1,mem=2,matches=3", Group{})
	require.NoError(t, err, "resources of other names")
	assert.Len(t, g.Resources, 3)

	g, err = ParseGroup("workers", Group{})
	require.NoError(t, err)
	assert.Equal(t, Group{Name: "workers", Machines: 1}, g)
}

func TestParseGroupRefuses(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"":                        "its name must consist of",
		"Trainers":                "its name must consist of",
		"a-":                      "its name must consist of",
		strings.Repeat("a", 51):   "up to 50 lower-case letters",
		"a:machines":              `"machines" must be KEY=VALUE`,
		"a:machines=0":            "it must be a number from 1 to 8192",
		"a:machines=x":            "it must be a number",
		"a:machines=1,machines=2": "once for each key",
		"a:cpus=-1":               "cpu",
		"a:gpus=0.5":              "gpu",
		"a:label.=x":              "a key is up to",
		"a:cpus=1,":               "must be KEY=VALUE",
		"a:machine=2":             "machines is meant",
		"a:machinez=2":            "machines is meant",
		"a:mmachines=2":           "machines is meant",
		"a:memry=2GiB":            "memory is meant",
		"a:label=zone":            "a label is label.KEY=VALUE",
	} {
		_, err := ParseGroup(text, Group{})
		assert.ErrorContains(t, err, want, "%q", text)
	}
}

func FuzzParseGroup(f *testing.F) {
	f.Add("trainers:machines=2,gpus=8,label.role=trainer")
	f.Add("a:label.x=,cpus=0.001")
	f.Fuzz(func(t *testing.T, text string) {
		g, err := ParseGroup(text, Group{})
		if err != nil {
			return
		}
		if g.Machines < 1 || g.Name == "" || g.Resources.Check() != nil || g.Labels.Check() != nil {
			t.Errorf("%q: %+v", text, g)
		}
		if _, err := machine.ParseLabels(append(g.Labels.Texts(), GroupLabel+"="+g.Name)...); err != nil && g.Labels[GroupLabel] == "" {
			t.Errorf("%q: %v", text, err)
		}
	})
}
