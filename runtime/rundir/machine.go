package rundir

import (
	"crypto/sha256"
	"encoding/base32"
	"fmt"
	"os"
	"strings"
)

const maxMachine = 64

// Machine returns the identity of this machine, for names and placement: $RAYLINK_MACHINE if it is
// set, else a short hash of the ids of the boot and of the network namespace. Two containers with
// network namespaces of their own are two machines; after a reboot a machine has another identity.
//
// It proves nothing. [Proves] shows that two processes share a file system.
func Machine() (string, error) {
	if name := os.Getenv(MachineEnv); name != "" {
		if len(name) > maxMachine || strings.Trim(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-") != "" {
			return "", fmt.Errorf("rundir: %s is %q: a machine's name consists of up to %d letters, digits, dots, dashes and underscores",
				MachineEnv, name, maxMachine)
		}
		return name, nil
	}
	facts, err := machineFacts()
	if err != nil {
		return "", fmt.Errorf("rundir: this machine can't be distinguished from others, set %s: %w", MachineEnv, err)
	}
	sum := sha256.Sum256([]byte(strings.Join(facts, "\n")))
	return strings.ToLower(base32.StdEncoding.EncodeToString(sum[:]))[:10], nil
}

// IsElsewhere reports whether a name is that of another machine than this one. What is there must
// not be mapped, even where both machines share a file system: their memory is not the same, and
// a process there can die unnoticed. An unknown machine, with an empty name, may be this one.
func IsElsewhere(machine string) bool {
	if machine == "" {
		return false
	}
	here, err := Machine()
	return err != nil || here != machine
}
