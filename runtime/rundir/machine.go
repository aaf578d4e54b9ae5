package rundir

import (
	"crypto/sha256"
	"encoding/base32"
	"fmt"
	"os"
	"strings"
)

const maxMachine = 64

// Machine identifies this machine for names and placement: $RAYLINK_MACHINE if that is set, else a
// short hash of what the system's start and network are called. Two containers with networks of
// their own are two machines; a machine that restarts is another one afterwards.
//
// It proves nothing. That two processes share a file system is shown by [Proves].
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
		return "", fmt.Errorf("rundir: this machine can't be told from others, set %s: %w", MachineEnv, err)
	}
	sum := sha256.Sum256([]byte(strings.Join(facts, "\n")))
	return strings.ToLower(base32.StdEncoding.EncodeToString(sum[:]))[:10], nil
}
