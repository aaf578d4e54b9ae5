package slurm

import (
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/raylink/raylink/internal/engine"
	"github.com/raylink/raylink/internal/machine"
)

// Submission is a run that is submitted as a batch job.
type Submission struct {
	// Raylink and Program are executables on file systems that all nodes see.
	Raylink string
	Program string
	Args    []string
	Groups  []engine.Group
	// Flags are further flags of `raylink run` in the job.
	Flags []string
	// Partition, Time, Account, QOS and Gres are the options of sbatch; empty for its defaults.
	Partition, Time, Account, QOS, Gres string
	// Options are further options of sbatch, each with its dashes.
	Options []string
	// Name is what the job is called.
	Name string
}

// stopTime is how long before its time limit a job is asked to stop: the checkpoint, the program
// and its nodes have that long. Slurm can be up to a minute early.
const stopTime = 2 * time.Minute

// Script returns the batch script. Groups that differ are the components of a heterogeneous job:
// each has its own nodes, and all start at the same time. The script's argument is the directory of
// the submission; without one it can be submitted by sbatch itself.
func (s *Submission) Script() (string, error) {
	var b strings.Builder
	fmt.Fprintln(&b, "#!/bin/sh")
	for i, g := range s.Groups {
		if i > 0 {
			fmt.Fprintln(&b, "#SBATCH hetjob")
		}
		options, err := s.options(g, i == 0)
		if err != nil {
			return "", err
		}
		for _, option := range options {
			fmt.Fprintln(&b, "#SBATCH "+option)
		}
	}
	fmt.Fprint(&b, "\nexec "+shellQuote(s.Raylink)+" run --on slurm ${1:+--slurm-submission \"$1\"}")
	for _, g := range s.Groups {
		fmt.Fprint(&b, " \\\n  --group "+shellQuote(groupText(g)))
	}
	for _, flag := range s.Flags {
		fmt.Fprint(&b, " \\\n  "+shellQuote(flag))
	}
	fmt.Fprint(&b, " \\\n  -- "+shellQuote(s.Program))
	for _, arg := range s.Args {
		fmt.Fprint(&b, " "+shellQuote(arg))
	}
	fmt.Fprintln(&b)
	return b.String(), nil
}

// options are sbatch's options for a group.
func (s *Submission) options(g engine.Group, first bool) ([]string, error) {
	var options []string
	add := func(name, value string) {
		if value != "" {
			options = append(options, "--"+name+"="+value)
		}
	}
	if first {
		add("job-name", s.Name)
		// The batch script is the head: the signal is for it alone, and it stops the others in
		// order. A run that is begun again by Slurm would begin from nothing.
		add("signal", fmt.Sprintf("B:TERM@%d", int(stopTime.Seconds())))
		options = append(options, "--no-requeue")
	}
	add("nodes", strconv.Itoa(g.Machines))
	add("ntasks-per-node", "1")
	if cpu := g.Resources[machine.CPU]; cpu > 0 {
		add("cpus-per-task", strconv.FormatInt((cpu+machine.Unit-1)/machine.Unit, 10))
	}
	if memory := g.Resources[machine.Memory]; memory > 0 {
		const mib = 1 << 20
		add("mem", strconv.FormatInt((memory+mib-1)/mib, 10)+"M")
	}
	var gres []string
	if gpus := g.Resources[machine.GPU]; gpus > 0 {
		gres = append(gres, fmt.Sprintf("gpu:%d", gpus/machine.Unit))
	}
	if s.Gres != "" {
		gres = append(gres, s.Gres)
	}
	add("gres", strings.Join(gres, ","))
	add("partition", s.Partition)
	add("time", s.Time)
	add("account", s.Account)
	add("qos", s.QOS)
	for _, option := range s.Options {
		if !strings.HasPrefix(option, "-") {
			return nil, fmt.Errorf("slurm: the option %q of sbatch must begin with a dash", option)
		}
		options = append(options, option)
	}
	for i, option := range options {
		quoted, err := optionQuote(option)
		if err != nil {
			return nil, err
		}
		options[i] = quoted
	}
	return options, nil
}

// optionQuote quotes an option for a line of sbatch, which must not end in it.
func optionQuote(option string) (string, error) {
	if strings.ContainsFunc(option, unicode.IsControl) {
		return "", fmt.Errorf("slurm: the option %q of sbatch has a control character", option)
	}
	if !strings.ContainsAny(option, " #\"'\\") {
		return option, nil
	}
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(option) + `"`, nil
}

// shellQuote quotes a word for the shell.
func shellQuote(word string) string {
	const plain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-./:=,@%+"
	if word != "" && strings.Trim(word, plain) == "" {
		return word
	}
	return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
}

// groupText is a group as [engine.ParseGroup] parses it.
func groupText(g engine.Group) string {
	settings := []string{fmt.Sprintf("%s:machines=%d", g.Name, g.Machines)}
	if len(g.Resources) > 0 {
		settings = append(settings, g.Resources.String())
	}
	for _, label := range g.Labels.Texts() {
		settings = append(settings, "label."+label)
	}
	return strings.Join(settings, ",")
}
