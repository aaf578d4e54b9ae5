package brain

import (
	"context"
	"fmt"

	"github.com/raylink/raylink/brain/internal/tree"
	machinev1 "github.com/raylink/raylink/gen/raylink/machine/v1"
	nodev1 "github.com/raylink/raylink/gen/raylink/node/v1"
)

// Waiting is how many requests wait for a place.
func (b *Brain) Waiting() int {
	b.mu.RLock()
	defer b.mu.RUnlock()
	return b.tree.Waiting()
}

// JoinMachines enters machines without the streams of their keepers.
func (b *Brain) JoinMachines(count int) error {
	return b.change(context.Background(), func(x *tree.Txn) error {
		for i := range count {
			m := &machinev1.Machine{
				Id: keeperHost(i).GetMachine(), Name: fmt.Sprintf("machine-%04d", i), Agent: true,
				Platform:  &machinev1.Platform{Os: "linux", Arch: "amd64"},
				Resources: map[string]int64{"cpu": 128_000, "memory": 512 << 30, "gpu": 8000},
				Gpus:      []string{"0", "1", "2", "3", "4", "5", "6", "7"},
				Labels:    map[string]string{"role": []string{"trainer", "worker"}[i%2]},
			}
			if err := tree.CheckMachine(keeperHost(i), m); err != nil {
				return err
			}
			if err := x.Keep(keeperHost(i), m); err != nil {
				return err
			}
		}
		return nil
	})
}

func keeperHost(i int) *nodev1.HostInfo {
	return &nodev1.HostInfo{
		Id: fmt.Sprintf("00000000-0000-4000-8000-%012d", i), Machine: fmt.Sprintf("7d0b8a2e-5b1c-4c1e-9f57-%012d", i),
		Pid: int32(i), Address: fmt.Sprintf("10.0.%d.%d:7000", i/256, i%256), Build: "0123456789abcdef0123456789abcdef",
	}
}
