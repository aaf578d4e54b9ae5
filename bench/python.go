package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// missingError says why a system can't take part.
type missingError struct{ reason string }

func (e *missingError) Error() string { return "missing: " + e.reason }

// pythonWith returns a Python that has packages from PyPI. If there is none yet, and install is
// set, it makes an environment with one of the interpreters in the user's cache folder; command is
// what sets install. The error is a [missingError] if there is none.
func pythonWith(ctx context.Context, install bool, command string, packages []string, interpreters ...string) (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", &missingError{"no cache folder: " + err.Error()}
	}
	dir := filepath.Join(cache, "raylink-bench", strings.Join(packages, "-"))
	python, complete := filepath.Join(dir, "bin", "python"), filepath.Join(dir, "complete")
	if _, err := os.Stat(complete); err == nil {
		return python, nil
	}
	if !install {
		return "", &missingError{fmt.Sprintf("%s is not installed: `%s` installs it into %s", packages[0], command, dir)}
	}
	found := ""
	for _, name := range interpreters {
		// Debian's Python lacks these until python3-venv is installed.
		if exec.CommandContext(ctx, name, "-c", "import ensurepip, venv").Run() == nil {
			found = name
			break
		}
	}
	if found == "" {
		return "", &missingError{strings.Join(interpreters, " or ") + " with ensurepip and venv was not found (Debian: apt-get install python3-venv)"}
	}
	if err := os.RemoveAll(dir); err != nil {
		return "", err
	}
	pip := append([]string{"-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-cache-dir"}, packages...)
	for _, cmd := range []*exec.Cmd{exec.CommandContext(ctx, found, "-m", "venv", dir), exec.CommandContext(ctx, python, pip...)} {
		if out, err := cmd.CombinedOutput(); err != nil {
			lines := strings.Split(strings.TrimSpace(string(out)), "\n")
			return "", &missingError{fmt.Sprintf("%s: %v: %s", strings.Join(cmd.Args, " "), err, lines[len(lines)-1])}
		}
	}
	return python, os.WriteFile(complete, nil, 0o600)
}
