package slurm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"syscall"
)

// command runs a command of Slurm and returns what it prints. An error has Slurm's own words. A
// Ctrl-C at the terminal does not reach it: what it does must be known afterwards.
func command(ctx context.Context, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	switch {
	case errors.Is(err, exec.ErrNotFound):
		return "", fmt.Errorf("slurm: there is no %s here: this is no machine of a Slurm cluster, or Slurm's commands are not in PATH", name)
	case ctx.Err() != nil:
		return "", ctx.Err()
	case err != nil:
		if said := words(errs.String()); said != "" {
			return "", fmt.Errorf("slurm: %s: %s", name, said)
		}
		return "", fmt.Errorf("slurm: %s: %w", name, err)
	}
	return out.String(), nil
}

// words are the lines of an error without what each begins with.
func words(text string) string {
	var lines []string
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		for _, prefix := range []string{"sbatch: ", "scancel: ", "scontrol: ", "srun: ", "error: ", "fatal: "} {
			line = strings.TrimPrefix(line, prefix)
		}
		if line != "" {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines, "; ")
}
