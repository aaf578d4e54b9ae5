package runtime

import (
	"math"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	nodev1 "github.com/raylink/raylink/gen/raylink/node/v1"
)

func TestResourcesTravelExactly(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		thousandths := func(name string) float64 { return float64(rapid.Int64Range(0, 1<<40).Draw(t, name)) / 1000 }
		r := Resources{
			CPUs: thousandths("cpus"), Memory: rapid.Int64Range(0, 1<<48).Draw(t, "memory"), GPUs: rapid.IntRange(0, 1000).Draw(t, "gpus"),
		}
		if amount := thousandths("licences"); amount > 0 {
			r.Other = map[string]float64{"licence": amount}
		}
		amounts, err := r.amounts()
		require.NoError(t, err)
		require.Equal(t, r, resourcesOf(amounts))
	})
	assert.Equal(t, "cpu=0.5,gpu=1,licence=2,memory=16GiB",
		Resources{CPUs: 0.5, GPUs: 1, Memory: 16 << 30, Other: map[string]float64{"licence": 2}}.String())
}

func TestInvalidResourcesAreRefused(t *testing.T) {
	t.Parallel()
	for text, r := range map[string]Resources{
		"0.0001 of cpu is no amount: it has more than three decimals, or is too large": {CPUs: 0.0001},
		"NaN of cpu is no amount: it has more than three decimals, or is too large":    {CPUs: math.NaN()},
		"+Inf of x is no amount: it has more than three decimals, or is too large":     {Other: map[string]float64{"x": math.Inf(1)}},
		"1e+300 of cpu is no amount: it has more than three decimals, or is too large": {CPUs: 1e300},
		"gpu is a field of its own, and no other resource":                             {Other: map[string]float64{"gpu": 1}},
	} {
		_, err := r.amounts()
		require.EqualError(t, err, text)
	}
	for _, r := range []Resources{{CPUs: -1}, {Memory: -1}, {GPUs: -1}, {Other: map[string]float64{"A B": 1}}} {
		_, err := r.amounts()
		require.Error(t, err, "%+v", r)
	}
}

func TestOptionsOfPlacesAreTheRequests(t *testing.T) {
	t.Parallel()
	place := func(opts ...CreateOption) (*nodev1.Place, error) {
		o := createOptions{request: new(nodev1.CreateRequest)}
		for _, opt := range opts {
			opt(&o)
		}
		return o.request.GetPlace(), o.err
	}
	got, err := place(Requires(Resources{GPUs: 1}, Labels{"role": "trainer"}), On("gpu1"), Spread(), Pack())
	require.NoError(t, err)
	assert.Equal(t, map[string]int64{"gpu": 1000}, got.GetResources())
	assert.Equal(t, map[string]string{"role": "trainer"}, got.GetLabels())
	assert.Equal(t, "gpu1", got.GetOn())
	assert.True(t, got.GetNoDefaults())
	assert.Equal(t, nodev1.PlaceStrategy_PLACE_STRATEGY_PACK, got.GetStrategy())
	_, err = place(Requires(Resources{CPUs: -1}, nil), Near(Ref{}))
	require.ErrorContains(t, err, "the resources that new nodes require: ")
	_, err = place(Near(Ref{}))
	require.ErrorContains(t, err, "new nodes should be near to a node: the reference is to none")
	_, err = place(Requires(Resources{}, Labels{"a b": ""}))
	require.ErrorContains(t, err, "the labels that new nodes require: ")
}

func TestDevicesOfANodeAreItsGPUs(t *testing.T) {
	t.Parallel()
	env, err := devicesEnv([]string{"GPU-a", "GPU-b", "GPU-c"}, []uint32{0, 2})
	require.NoError(t, err)
	assert.Equal(t, []string{"CUDA_VISIBLE_DEVICES=GPU-a,GPU-c"}, env)
	env, err = devicesEnv([]string{"GPU-a"}, nil)
	require.NoError(t, err)
	assert.Empty(t, env, "what the process inherits stays")
	_, err = devicesEnv([]string{"GPU-a"}, []uint32{1})
	require.ErrorContains(t, err, "GPU 1 was allocated, and the machine has 1")
}

func TestDefaultsOfATypeAreForProcessesOfTheirOwn(t *testing.T) {
	t.Parallel()
	h := &Host{machine: "here"}
	typ := NodeType{service: &Service{config: serviceConfig{resources: map[string]int64{"gpu": 1000}}}}
	const own, parents = nodev1.Placement_PLACEMENT_OWN_PROCESS, nodev1.Placement_PLACEMENT_PARENT_PROCESS
	place := func(p *nodev1.Place, process nodev1.Placement) *nodev1.Place {
		got, err := h.placeOf(typ, &nodev1.CreateRequest{Place: p}, process)
		require.NoError(t, err)
		return got
	}
	assert.Equal(t, map[string]int64{"gpu": 1000}, place(nil, own).GetResources())
	assert.Equal(t, map[string]int64{"gpu": 1000}, place(&nodev1.Place{On: "there"}, own).GetResources())
	assert.Empty(t, place(&nodev1.Place{NoDefaults: true}, own).GetResources(), "a creation requires nothing")
	assert.Nil(t, place(nil, parents), "a node in this process that needs nothing has no place")
	required := place(&nodev1.Place{Resources: map[string]int64{"cpu": 500}, NoDefaults: true}, parents)
	assert.Equal(t, "here", required.GetOn(), "a node in this process has what it needs of this machine")
	_, err := h.placeOf(typ, &nodev1.CreateRequest{Place: &nodev1.Place{On: "there"}}, parents)
	require.ErrorContains(t, err, `new nodes should run on machine "there", and in a process on here`)
	_, err = h.placeOf(typ, &nodev1.CreateRequest{Count: 2, Place: &nodev1.Place{Strategy: nodev1.PlaceStrategy_PLACE_STRATEGY_ONE_PER_MACHINE}}, parents)
	require.ErrorContains(t, err, "2 new nodes should run on different machines, and in one process")
	_, err = h.placeOf(typ, &nodev1.CreateRequest{}, nodev1.Placement_PLACEMENT_AGENT_PROCESS)
	require.ErrorContains(t, err, "new nodes should have gpu=1, and be in the processes of agents (AgentProcess): nodes with GPUs need processes of their own")
}
