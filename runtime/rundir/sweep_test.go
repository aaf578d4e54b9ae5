package rundir

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
)

// step is an event in a sequence of hosts that share a runtime directory.
type step string

const (
	made   step = "a host is made"
	closed step = "a host is closed"
	died   step = "a host dies"
	swept  step = "one sweeps"
	rushed step = "several sweep at once"
)

// runSteps runs the steps. It checks after each that every living host has its directory, and after
// each sweep that no dead one has.
func runSteps(base string, steps []step) error {
	var living []*Host
	defer func() {
		for _, host := range living {
			_ = host.Close() // whatever the sweeps left of it
		}
	}()
	for i, s := range steps {
		var err error
		switch {
		case s == made:
			var host *Host
			if host, err = NewHost(base); err == nil {
				living = append(living, host)
			}
		case s == closed && len(living) > 0:
			err, living = living[0].Close(), living[1:]
		case s == died && len(living) > 0:
			// The kernel closes the files of a dead process.
			err, living = living[0].lock.release(), living[1:]
		case s == swept:
			err = SweepHosts(base)
		case s == rushed:
			err = sweepAtOnce(base, 3)
		}
		if err == nil {
			err = verify(base, living, s == swept || s == rushed)
		}
		if err != nil {
			return fmt.Errorf("after step %d (%s): %w", i, s, err)
		}
	}
	return nil
}

func sweepAtOnce(base string, n int) error {
	errs := make([]error, n)
	var sweepers sync.WaitGroup
	for i := range errs {
		sweepers.Go(func() { errs[i] = SweepHosts(base) })
	}
	sweepers.Wait()
	return errors.Join(errs...)
}

func verify(base string, living []*Host, clean bool) error {
	var paths []string
	for _, host := range living {
		if !Proves("", host.Path(), host.Nonce()) {
			return fmt.Errorf("the directory of a living host is gone: %s", host.Path())
		}
		paths = append(paths, host.Path())
	}
	entries, err := os.ReadDir(base)
	for _, entry := range entries {
		if path := base + "/" + entry.Name(); clean && !slices.Contains(paths, path) {
			return fmt.Errorf("the directory of a dead host still exists: %s", path)
		}
	}
	return err
}
