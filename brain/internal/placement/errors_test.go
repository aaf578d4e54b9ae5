package placement

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/raylink/raylink/internal/machine"
)

const gib = 1 << 30

// lab has three machines: two with GPUs, of which one is full.
func lab(t *testing.T) *crowd {
	t.Helper()
	c := newCrowd(t,
		Machine{ID: "id-head", Name: "head", Total: Resources{"cpu": 4 * Unit, Memory: 16 * gib}},
		Machine{ID: "id-gpu1", Name: "gpu1", Total: Resources{"cpu": 16 * Unit, Memory: 62*gib + gib/2}, GPUs: []uint32{0, 1}, Labels: map[string]string{"role": "trainer"}},
		Machine{ID: "id-gpu2", Name: "gpu2", Total: Resources{"cpu": 8 * Unit}, GPUs: []uint32{0}, Labels: map[string]string{"role": "trainer", "zone": "b"}},
	)
	require.NoError(t, c.place(&Request{Count: 2, Resources: Resources{GPU: Unit, "cpu": 6500}, Strategy: OnePerMachine}))
	return c
}

func TestErrorsOfRequests(t *testing.T) {
	c := lab(t)
	for _, test := range []struct {
		request Request
		says    string
	}{
		{Request{}, "0 nodes are asked for; a request is for at least one"},
		{Request{Count: -1}, "-1 nodes are asked for; a request is for at least one"},
		{Request{Count: MaxCount + 1}, "10001 nodes in one request are too many; the bound is 10000"},
		{Request{Count: 1, Strategy: 9}, "9 is not a strategy"},
		{Request{Count: 1, Resources: Resources{"cpu": -500}}, `resources: "cpu=-0.5": an amount can't be negative`},
		{Request{Count: 1, Resources: Resources{GPU: 500}}, `resources: "gpu=0.5": GPUs are whole: a part of one can't be allocated`},
		{Request{Count: 1, Resources: Resources{Memory: maxAmount + gib}}, "memory=256TiB is too much; the bound is memory=256TiB"},
		{Request{Count: 1, Resources: Resources{"": 1}}, `resources: "": the name of a resource is up to 63 lower-case letters, digits, '.', '_', '/' and '-', beginning with a letter`},
		{Request{Count: 1, Labels: map[string]string{"": "x"}}, `label "=x": a key is up to 63 letters, digits, '-', '_' and '.' that begin and end with a letter or digit, and may have a prefix such as example.com/`},

		{Request{Count: 1, On: "cpu1"}, `no machine has the name or the id "cpu1"; there are gpu1, gpu2, head`},
		{Request{Count: 1, Near: "id-9"}, `the machine "id-9" of the node to be near to is not there; there are gpu1, gpu2, head`},
		{
			Request{Count: 3, Labels: map[string]string{"role": "trainer"}, Strategy: OnePerMachine},
			"3 nodes, label role=trainer can't be placed, one per machine: 2 machines match",
		},

		{
			Request{Count: 1, Resources: Resources{GPU: 4000, "cpu": 500}},
			"a node with cpu=0.5, gpu=4 can never be placed: gpu1 has cpu=16, gpu=2, memory=62.5GiB; gpu2 has cpu=8, gpu=1; head has cpu=4, memory=16GiB",
		},
		{
			Request{Count: 3, Resources: Resources{GPU: 1000}, On: "gpu1"},
			`3 nodes with gpu=1 each, on the machine "gpu1" can never be placed: gpu1 has cpu=16, gpu=2, memory=62.5GiB`,
		},
		{
			Request{Count: 1, Near: "id-head", Labels: map[string]string{"role": "trainer"}},
			`a node, label role=trainer, on the machine "id-head" of another node can never be placed: no machine matches; ` +
				"gpu1 has cpu=16, gpu=2, memory=62.5GiB and the labels role=trainer; gpu2 has cpu=8, gpu=1 and the labels role=trainer, zone=b; head has cpu=4, memory=16GiB",
		},
		{
			Request{Count: 1, Resources: Resources{"licence": 1000, Memory: 512}, Labels: map[string]string{"role": "trainer", "zone": "b"}},
			"a node with licence=1, memory=512, labels role=trainer, zone=b can never be placed: gpu2 has cpu=8, gpu=1",
		},

		{
			Request{Count: 2, Resources: Resources{GPU: 1000}},
			"2 nodes with gpu=1 each can't be placed now: the 2 machines that could have them lack gpu (1 of 3 free); " +
				"nodes that have it: node-1 (gpu=1 on gpu1), node-2 (gpu=1 on gpu2)",
		},
		{
			Request{Count: 1, Resources: Resources{GPU: 1000}, On: "gpu2"},
			`a node with gpu=1, on the machine "gpu2" can't be placed now: the machine that could have it lacks gpu (0 of 1 free); nodes that have it: node-2 (gpu=1 on gpu2)`,
		},
		{ // There is enough of each, but not together.
			Request{Count: 2, Resources: Resources{"cpu": 6000}, Labels: map[string]string{"role": "trainer"}},
			"2 nodes with cpu=6 each, label role=trainer can't be placed now: the 2 machines that could have them lack cpu (11 of 24 free, at most 9.5 on one machine); " +
				"nodes that have it: node-1 (cpu=6.5 on gpu1), node-2 (cpu=6.5 on gpu2)",
		},
	} {
		_, err := c.a.Place(&test.request)
		require.EqualError(t, err, test.says)
		if !errors.As(err, new(*LackingError)) {
			_, err = c.a.Wait(&test.request)
			require.EqualError(t, err, test.says)
		}
	}
}

func TestErrorsWithoutMachines(t *testing.T) {
	for says, request := range map[string]Request{
		"a node can never be placed: no machine has joined":            {Count: 1},
		`no machine has the name or the id "x": no machine has joined`: {Count: 1, On: "x"},
	} {
		_, err := New().Place(&request)
		require.EqualError(t, err, says)
	}
}

func TestErrorNamesEarlierRequests(t *testing.T) {
	c := lab(t)
	c.wait(&Request{Count: 1, Resources: Resources{GPU: 2000}, By: "manager-0/runner-1"})
	c.wait(&Request{Count: 1, Resources: Resources{GPU: 2000}, By: "of the same class"})
	ticket := c.wait(&Request{Count: 1, Resources: Resources{GPU: 1000}})
	const says = "a node with gpu=1 can't be placed now: the 2 machines that could have it lack gpu (1 of 3 free); " +
		"nodes that have it: node-1 (gpu=1 on gpu1), node-2 (gpu=1 on gpu2); " +
		"reserved for earlier requests: a node with gpu=2 for manager-0/runner-1"
	require.EqualError(t, c.a.Waiting(ticket), says)

	var lacking *LackingError
	require.ErrorAs(t, c.a.Waiting(ticket), &lacking)
	named := lacking.Named(func(node string) string { return "path/of/" + node })
	require.EqualError(t, named, strings.ReplaceAll(says, "node-", "path/of/node-"))
	require.EqualError(t, lacking, says)
}

// TestErrorsAreBounded has many machines, nodes, resources and waiting requests with long names.
func TestErrorsAreBounded(t *testing.T) {
	long := strings.Repeat("x", maxNameBytes)
	c := newCrowd(t)
	for i := range 20 {
		m := Machine{ID: strconv.Itoa(i), Name: fmt.Sprintf("m%02d%s", i, long[:200]), Total: make(Resources), Labels: make(map[string]string)}
		for j := range machine.MaxResources {
			m.Total[fmt.Sprintf("r%02d%s", j, long[:60])] = Unit
			m.Labels[fmt.Sprintf("l%02d%s", j, long[:60])] = long[:machine.MaxLabelName]
		}
		require.NoError(t, c.a.Join(m))
	}
	all := c.a.Machines("")[0].Total
	require.NoError(t, c.place(&Request{Count: 20, Resources: all}))
	for i := range 20 {
		c.wait(&Request{Count: 1, Resources: all, On: strconv.Itoa(i), By: strings.Repeat("x", 1000)})
	}
	for says, request := range map[string]Request{
		" and 56 more; nodes that have it: ": {Count: 2, Resources: all},
		" and others; reserved for":          {Count: 2, Resources: all},
		"; m07":                              {Count: 21, Resources: all},
		" and 56 more":                       {Count: 1, Labels: map[string]string{"x": "y"}},
		" and 12 more":                       {Count: 1, On: long},
	} {
		_, err := c.a.Place(&request)
		require.ErrorContains(t, err, says)
		require.LessOrEqual(t, len(err.Error()), 32<<10)
		require.NotContains(t, err.Error(), "m08")
	}
}

func TestErrorsOfMachines(t *testing.T) {
	long := strings.Repeat("x", 300)
	for says, m := range map[string]Machine{
		"a machine's id has 1 to 256 bytes":                  {Name: "x"},
		"and its name at most that":                          {ID: "x", Name: long},
		`two GPUs of the machine "x" have the number 3`:      {ID: "x", Name: "x", GPUs: []uint32{3, 1, 3}},
		`the machine "x" has gpu=2, but 1 GPUs with numbers`: {ID: "x", Name: "x", GPUs: []uint32{3}, Total: Resources{GPU: 2000}},
		`"cpu=-1": an amount can't be negative`:              {ID: "x", Total: Resources{"cpu": -1000}},
		"1025 GPUs of one machine are too many":              {ID: "x", GPUs: make([]uint32, 1025)},
		"a value is empty, or up to 63":                      {ID: "x", Labels: map[string]string{"x": long}},
		"there are 65 resources; the limit is 64":            {ID: "x", Total: Resources(manyEntries(func(int) int64 { return 1 }))},
		"there are 65 labels; the limit is 64":               {ID: "x", Labels: manyEntries(func(int) string { return "" })},
	} {
		a := New()
		require.ErrorContains(t, a.Join(m), says)
		require.Empty(t, a.Machines(""))
	}
}

func manyEntries[V any](value func(int) V) map[string]V {
	m := make(map[string]V)
	for i := range 65 {
		m[strconv.Itoa(i)] = value(i)
	}
	return m
}

func TestErrorsOfAllocations(t *testing.T) {
	c := lab(t)
	before := dump(c.a)
	for says, given := range map[string]Allocation{
		"allocate resources to node x: the allocation names no machine":                   {},
		`allocate resources to node x: resources: "cpu=-1": an amount can't be negative`:  {Machine: "id-gpu1", Resources: Resources{"cpu": -1000}},
		"allocate resources to node x: another node has GPU 0 of the machine id-gpu1":     {Machine: "id-gpu1", Resources: Resources{GPU: 1000}, GPUs: []uint32{0}},
		"allocate resources to node x: the allocation has gpu=1, but 0 GPUs with numbers": {Machine: "id-gpu1", Resources: Resources{GPU: 1000}},
		"allocate resources to node x: the allocation has GPU 1 after GPU 1":              {Machine: "id-gpu1", Resources: Resources{GPU: 2000}, GPUs: []uint32{1, 1}},
	} {
		require.EqualError(t, c.a.Allocate("x", given), says)
	}
	require.EqualError(t, c.a.Allocate("node-1", Allocation{Machine: "id-head"}), "allocate resources to node node-1: it has an allocation")
	require.Equal(t, before, dump(c.a))
}
