//go:build !linux

package rundir

import "os"

// machineFacts is the host name, which is all that this package knows of a machine on systems for
// which RayLink only builds.
func machineFacts() ([]string, error) {
	name, err := os.Hostname()
	return []string{name}, err
}
