package main

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	brainv1 "github.com/raylink/raylink/gen/raylink/brain/v1"
	"github.com/raylink/raylink/internal/machine"
)

func (a *app) machinesCommand() *cobra.Command {
	var wait int
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "machines [MACHINE]",
		Short: "Show the machines of a system, and what is used of them",
		Long: `machines shows the machines of a system: name, address, labels, what is used of what there is, how many nodes Brain has
placed there, and how long ago the machine has joined. MACHINE is a name or an id; without one all are shown.

With -o json it prints one object whose "machines" are as Brain's method ListMachines returns them.`,
		Args: between(0, 1, "[MACHINE]"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if wait > 0 {
				if err := a.awaitMachines(cmd.Context(), wait, timeout); err != nil {
					return err
				}
			}
			return a.machines(cmd.Context(), strings.Join(args, ""))
		},
	}
	cmd.Flags().IntVar(&wait, "wait", 0, "wait first until the agents of so many machines have joined, and for Brain")
	cmd.Flags().DurationVar(&timeout, "timeout", 10*time.Minute, "how long --wait may take")
	a.clientFlags(cmd)
	return cmd
}

func (a *app) machines(ctx context.Context, name string) error {
	s, err := a.connect(ctx)
	if err != nil {
		return err
	}
	defer s.close()
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	res, err := s.brain.ListMachines(ctx, &brainv1.ListMachinesRequest{Machine: name})
	if err != nil {
		return err
	}
	if a.output == outputJSON {
		all := make([]json.RawMessage, len(res.GetMachines()))
		for i, use := range res.GetMachines() {
			if all[i], err = compactJSON(nil, use); err != nil {
				return err
			}
		}
		return a.writeJSON(map[string][]json.RawMessage{"machines": all})
	}
	return a.write(machinesTable(res.GetMachines(), time.Now()))
}

// machinesTable formats machines as a table.
func machinesTable(uses []*brainv1.MachineUse, now time.Time) string {
	rows := make([][]string, 1, 1+len(uses))
	rows[0] = []string{"NAME", "ADDRESS", "CPUS", "MEMORY", "GPUS", "OTHER", "LABELS", "NODES", "AGE", "KEPT BY"}
	for _, use := range uses {
		m := use.GetMachine()
		kept := "a program"
		if m.GetAgent() {
			kept = "an agent"
		}
		rows = append(rows, []string{
			printable(m.GetName()), printable(use.GetKeeper().GetAddress()), usedOf(use, machine.CPU), usedOf(use, machine.Memory), usedOf(use, machine.GPU),
			otherResources(use), printable(machine.Labels(m.GetLabels()).String()), strconv.FormatUint(use.GetNodes(), 10),
			now.Sub(use.GetJoined().AsTime()).Round(time.Second).String(), kept,
		})
	}
	return table(rows)
}

// usedOf formats what is used of a resource, `2/16`; "" if the machine has none of it.
func usedOf(use *brainv1.MachineUse, resource string) string {
	total, used := use.GetMachine().GetResources()[resource], use.GetUsed()[resource]
	if total == 0 && used == 0 {
		return ""
	}
	return amount(resource, used) + "/" + amount(resource, total)
}

// amount formats an amount of a resource without its name.
func amount(resource string, amount int64) string {
	if amount == 0 {
		return "0"
	}
	_, text, _ := strings.Cut(machine.Resources{resource: amount}.String(), "=")
	if resource == machine.Memory { // memory of a whole machine is no round number
		text = machine.Resources{resource: amount}.Summary()
	}
	return text
}

// otherResources formats what is used of resources of the users' choice: `licence=1/2`.
func otherResources(use *brainv1.MachineUse) string {
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(use.GetMachine().GetResources())) {
		if name != machine.CPU && name != machine.GPU && name != machine.Memory {
			parts = append(parts, fmt.Sprintf("%s=%s", printable(name), usedOf(use, name)))
		}
	}
	return strings.Join(parts, " ")
}
