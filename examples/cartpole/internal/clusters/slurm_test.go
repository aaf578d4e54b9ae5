package clusters

import (
	"bytes"
	"flag"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/raylink/raylink/internal/slurmtest"
)

// programs is where raylink and cartpole are.
var programs = flag.String("programs", "", "the `directory` of the programs raylink and cartpole (default: nothing is trained)")

// TestCartPoleSolvesOnSlurm trains on the three nodes of a job: learner and replay on the first,
// workers on the others.
func TestCartPoleSolvesOnSlurm(t *testing.T) {
	if *programs == "" {
		t.Skip("make demo-slurm trains; the engine's own tests are in internal/engine/slurm")
	}
	c := slurmtest.New(t, 3)
	args := []string{
		"run", "--on", "slurm", "--partition", "main", "--time", "30",
		"--group", "trainer:machines=1,cpus=2,label.role=trainer", "--group", "worker:machines=2,cpus=1,label.role=worker",
		"--", filepath.Join(*programs, "cartpole"),
	}
	run := c.Command(filepath.Join(*programs, "raylink"), append(args, flag.Args()...)...)
	var seen bytes.Buffer
	run.Stdout, run.Stderr = os.Stdout, io.MultiWriter(os.Stderr, &seen)
	require.NoError(t, run.Run(), "CartPole was not solved")
	for _, machine := range []string{"trainer-0", "worker-0", "worker-1"} {
		assert.Contains(t, seen.String(), machine+" has joined")
	}
	c.NothingIsLeft(t)
}
