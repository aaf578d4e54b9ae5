package slurm

import (
	"cmp"
	"fmt"
	"strconv"
	"strings"

	"github.com/raylink/raylink/internal/machine"
)

// Place is where a process finds itself.
type Place int

// The places.
const (
	Outside Place = iota
	InAllocation
	InStep
)

// Env is what Slurm has set in a process's environment:
// https://slurm.schedmd.com/srun.html#SECTION_OUTPUT-ENVIRONMENT-VARIABLES.
type Env func(name string) (value string, ok bool)

func (e Env) get(name string) string {
	value, _ := e(name)
	return value
}

// number returns the number of a variable, and whether there is one.
func (e Env) number(name string) (int, bool) {
	n, err := strconv.Atoi(e.get(name))
	return n, err == nil
}

// Find says where this process is. A batch script, and the shell of salloc on a node, are no step
// of tasks although they have a rank: only a step that srun has launched has the address of it.
func (e Env) Find() Place {
	switch {
	case e.get("SLURM_JOB_ID") == "":
		return Outside
	case e.get("SLURM_PROCID") != "" && e.get("SLURM_STEP_ID") != "" && e.get("SLURM_SRUN_COMM_PORT") != "" && e.tasks() > 1:
		return InStep
	default:
		return InAllocation
	}
}

// tasks is how many tasks the step has.
func (e Env) tasks() int {
	n, ok := e.number("SLURM_STEP_NUM_TASKS")
	if !ok {
		n, _ = e.number("SLURM_NTASKS")
	}
	return n
}

// Rank is the number of this task in its step.
func (e Env) Rank() int {
	n, _ := e.number("SLURM_PROCID")
	return n
}

// Machines is how many machines a run has here: the tasks beside the head, or the nodes of the
// allocation, of each component if it is heterogeneous.
func (e Env) Machines() (components []int, err error) {
	if e.Find() == InStep {
		return []int{e.tasks() - 1}, nil
	}
	size, heterogeneous := e.number("SLURM_HET_SIZE")
	if !heterogeneous {
		n, ok := e.number("SLURM_JOB_NUM_NODES")
		if !ok || n < 1 {
			return nil, fmt.Errorf("slurm: SLURM_JOB_NUM_NODES is %q: it must be the number of the job's nodes", e.get("SLURM_JOB_NUM_NODES"))
		}
		return []int{n}, nil
	}
	for i := range size {
		name := fmt.Sprintf("SLURM_JOB_NUM_NODES_HET_GROUP_%d", i)
		n, ok := e.number(name)
		if !ok || n < 1 {
			return nil, fmt.Errorf("slurm: %s is %q: it must be the number of the component's nodes", name, e.get(name))
		}
		components = append(components, n)
	}
	return components, nil
}

// nodes is the list of a component's nodes, as Slurm writes it; i is negative if there are none.
func (e Env) nodes(i int) string {
	if i >= 0 {
		return e.get(fmt.Sprintf("SLURM_JOB_NODELIST_HET_GROUP_%d", i))
	}
	return e.get("SLURM_JOB_NODELIST")
}

// cpus is how many CPUs a task can have on each node of a component; 0 if it is not known.
func (e Env) cpus(i int) int {
	suffix := ""
	if i >= 0 {
		suffix = fmt.Sprintf("_HET_GROUP_%d", i)
	}
	if n, ok := e.number("SLURM_CPUS_PER_TASK" + suffix); ok {
		return n
	}
	least := 0
	for _, n := range repeated(e.get("SLURM_JOB_CPUS_PER_NODE" + suffix)) {
		if least == 0 || n < least {
			least = n
		}
	}
	return least
}

// repeated parses a list such as `2(x3),4`: 2, 2, 2, 4. What is not of this form ends it.
func repeated(text string) []int {
	var all []int
	for entry := range strings.SplitSeq(text, ",") {
		number, times, several := strings.Cut(entry, "(x")
		n, err := strconv.Atoi(number)
		count := 1
		if several && err == nil {
			count, err = strconv.Atoi(strings.TrimSuffix(times, ")"))
		}
		const most = 1 << 20
		if err != nil || count < 1 || len(all)+count > most {
			break
		}
		for range count {
			all = append(all, n)
		}
	}
	return all
}

// Resources is what Slurm has given to this task: its share of what the step has on the node. What
// the environment does not say is absent, so that the agent finds it out.
func (e Env) Resources() machine.Resources {
	share := 1
	tasks := repeated(cmp.Or(e.get("SLURM_STEP_TASKS_PER_NODE"), e.get("SLURM_TASKS_PER_NODE")))
	if id, ok := e.number("SLURM_NODEID"); ok && id >= 0 && id < len(tasks) {
		share = max(1, tasks[id])
	}
	r := make(machine.Resources)
	cpus, ok := e.number("SLURM_CPUS_PER_TASK")
	if !ok {
		cpus, _ = e.number("SLURM_CPUS_ON_NODE")
		cpus /= share
	}
	if cpus > 0 {
		r[machine.CPU] = int64(cpus) * machine.Unit
	}
	// Slurm's memory is in MiB. For a node 0 is all of it.
	const mib = 1 << 20
	if m, ok := e.number("SLURM_MEM_PER_NODE"); ok && m > 0 {
		r[machine.Memory] = int64(m) * mib / int64(share)
	} else if m, ok := e.number("SLURM_MEM_PER_CPU"); ok && m > 0 && cpus > 0 {
		r[machine.Memory] = int64(m) * mib * int64(cpus)
	}
	// Where a job has GPUs the agent counts CUDA_VISIBLE_DEVICES, which Slurm sets. A job that has
	// not asked for GPUs must not use those that are visible because nothing hides them.
	if _, visible := e(machine.VisibleDevices); !visible {
		r[machine.GPU] = 0
		if gpus, ok := e.number("SLURM_GPUS_ON_NODE"); ok {
			r[machine.GPU] = int64(gpus/share) * machine.Unit
		}
	}
	return r
}

// NodeName is what Slurm calls this node; empty outside a job.
func (e Env) NodeName() string { return e.get("SLURMD_NODENAME") }

// Identity is the identity of this task's machine, RAYLINK_MACHINE. Tasks of one node share memory
// and are one machine, of which only one agent can be the keeper: the first task that is an agent
// has the node's name, and so has the head, but any further one is a machine of its own.
func (e Env) Identity(agent bool) string {
	name := e.NodeName()
	local, _ := e.number("SLURM_LOCALID")
	first := 0
	if id, _ := e.number("SLURM_NODEID"); id == 0 && e.Find() == InStep {
		first = 1 // task 0 is the head
	}
	if agent && local > first {
		return fmt.Sprintf("%s-%d", name, local)
	}
	return name
}
