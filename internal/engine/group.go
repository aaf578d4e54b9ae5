package engine

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/raylink/raylink/internal/machine"
	"github.com/raylink/raylink/internal/spelling"
)

// DefaultGroup is the name of the group if none is named.
const DefaultGroup = "machines"

// MaxMachines bounds the machines of a group: those that Brain accepts.
const MaxMachines = 8192

// maxGroupName leaves room for a number in the name of a machine, of 63 bytes.
const maxGroupName = 50

// ParseGroup parses `NAME:machines=4,cpus=8,gpus=1,memory=16GiB,label.KEY=VALUE`. Any other key is
// that of a resource of the engine's or the user's own, such as licence=2. What is absent is as in
// defaults; without machines there is one.
func ParseGroup(text string, defaults Group) (Group, error) {
	g, err := parseGroup(text, defaults)
	if err != nil {
		return Group{}, fmt.Errorf("the group %q: %w", text, err)
	}
	return g, nil
}

func parseGroup(text string, defaults Group) (Group, error) {
	name, settings, _ := strings.Cut(text, ":")
	g := Group{Name: name, Machines: max(1, defaults.Machines), Resources: defaults.Resources.Clone(), Labels: defaults.Labels.Clone()}
	if len(name) > maxGroupName || strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" || strings.Trim(name, "-") != name || name == "" {
		return Group{}, fmt.Errorf("its name must consist of up to %d lower-case letters, digits and dashes between them", maxGroupName)
	}
	seen := make(map[string]bool)
	for setting := range strings.SplitSeq(settings, ",") {
		if settings == "" {
			break
		}
		key, value, ok := strings.Cut(setting, "=")
		if !ok || seen[key] {
			return Group{}, fmt.Errorf("%q must be KEY=VALUE, once for each key", setting)
		}
		seen[key] = true
		if err := set(&g, key, value); err != nil {
			return Group{}, err
		}
	}
	return g, nil
}

// Text returns the group in the form that ParseGroup parses.
func (g Group) Text() string {
	settings := []string{"machines=" + strconv.Itoa(g.Machines)}
	if !g.Resources.IsZero() {
		settings = append(settings, g.Resources.String())
	}
	for _, label := range g.Labels.Texts() {
		settings = append(settings, "label."+label)
	}
	return g.Name + ":" + strings.Join(settings, ",")
}

// set sets what a key names.
func set(g *Group, key, value string) error {
	if label, ok := strings.CutPrefix(key, "label."); ok {
		labels, err := machine.ParseLabels(label + "=" + value)
		if err != nil {
			return err
		}
		if g.Labels == nil {
			g.Labels = make(machine.Labels)
		}
		g.Labels[label] = labels[label]
		return nil
	}
	switch key {
	case "label", "labels":
		return fmt.Errorf("%s=%s: a label is label.KEY=VALUE", key, value)
	case "machines":
		n, err := strconv.Atoi(value)
		if err != nil || n < 1 || n > MaxMachines {
			return fmt.Errorf("machines=%s: it must be a number from 1 to %d", value, MaxMachines)
		}
		g.Machines = n
		return nil
	case "cpus":
		key = machine.CPU
	case "gpus":
		key = machine.GPU
	}
	for _, known := range []string{"machines", machine.Memory} {
		if key != known && spelling.Distance(key, known) <= 1 { // it would become a resource, and a run would have one machine
			return fmt.Errorf("%s=%s: %s is meant, or a resource needs another name", key, value, known)
		}
	}
	resources, err := machine.ParseResources(key + "=" + value)
	if err != nil {
		return err
	}
	if g.Resources == nil {
		g.Resources = make(machine.Resources)
	}
	g.Resources[key] = resources[key]
	return nil
}
