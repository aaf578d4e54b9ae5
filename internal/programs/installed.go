package programs

import (
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Installed are programs that are on this machine already, at paths by names. It must not be
// modified while it is used.
type Installed map[string]string

// InstalledProgram is a program of [Installed].
type InstalledProgram struct {
	Name string
	// Path is absolute.
	Path string
	// GOOS and GOARCH are the platform that it is for, which is that of this machine.
	GOOS, GOARCH string
}

// Install adds a program by a text NAME=PATH, the value of --program. The file must be there, and
// this process be allowed to execute it. A name can be given once.
func (i Installed) Install(text string) error {
	name, path, ok := strings.Cut(text, "=")
	switch {
	case !ok || name == "" || path == "":
		return fmt.Errorf("--program %q: it must be NAME=PATH", text)
	case strings.ContainsRune(name, filepath.Separator):
		return fmt.Errorf("--program %q: the name %s has a %c", text, name, filepath.Separator)
	case i[name] != "":
		return fmt.Errorf("--program %q: the name %s is that of %s already", text, name, i[name])
	}
	absolute, err := filepath.Abs(path)
	if err != nil {
		return fmt.Errorf("--program %q: %w", text, err)
	}
	if _, err := installed(name, absolute); err != nil {
		return fmt.Errorf("--program %q: %w", text, err)
	}
	i[name] = absolute
	return nil
}

// Find returns the program of a name. It is verified again: its file may have been replaced.
func (i Installed) Find(name string) (InstalledProgram, error) {
	path, ok := i[name]
	if !ok {
		there := "none is"
		if len(i) > 0 {
			there = "what is: " + strings.Join(slices.Sorted(maps.Keys(i)), ", ")
		}
		return InstalledProgram{}, fmt.Errorf("the program %s is not installed on this machine (%s): install it with --program %s=PATH",
			name, there, name)
	}
	p, err := installed(name, path)
	if err != nil {
		return InstalledProgram{}, fmt.Errorf("the program %s, installed as %s: %w", name, path, err)
	}
	return p, nil
}

func installed(name, path string) (InstalledProgram, error) {
	file, _, err := openRegular(path)
	if err != nil {
		return InstalledProgram{}, err
	}
	goos, goarch, err := platform(file)
	if err = errors.Join(err, file.Close()); err != nil {
		return InstalledProgram{}, err
	}
	if err := unix.Access(path, unix.X_OK); err != nil {
		return InstalledProgram{}, fmt.Errorf("it can't be executed: %w; run: chmod +x %s", err, path)
	}
	if goos != runtime.GOOS || goarch != runtime.GOARCH {
		return InstalledProgram{}, fmt.Errorf("it is for %s/%s, and this machine is %s/%s", goos, goarch, runtime.GOOS, runtime.GOARCH)
	}
	return InstalledProgram{Name: name, Path: path, GOOS: goos, GOARCH: goarch}, nil
}
