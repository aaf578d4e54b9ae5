//go:build !linux

package rundir

import "os"

// machineFacts is the host's name: what this package can know of a machine on a system that RayLink
// only builds for.
func machineFacts() ([]string, error) {
	name, err := os.Hostname()
	return []string{name}, err
}
