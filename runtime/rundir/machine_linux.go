package rundir

import "os"

// machineFacts are the boot id, and the inode of the network namespace (as in "net:[4026531840]").
func machineFacts() ([]string, error) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return nil, err
	}
	network, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		return nil, err
	}
	return []string{string(boot), network}, nil
}
