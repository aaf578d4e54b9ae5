// Package seed gives every part of a run random numbers of its own.
//
// A run has one seed. Each part that draws (an environment, an exploring policy, a learner's first weights) gets a stream
// named for it, so that one part drawing more, or starting later, changes nothing for the others.
package seed

import (
	"hash/fnv"
	"math/rand/v2"
	"strconv"
)

// Stream returns the random numbers of one part of a run: equal for equal arguments, independent otherwise.
func Stream(run uint64, part string, index int) *rand.Rand {
	name := fnv.New64a()
	// Writing to a hash never fails.
	_, _ = name.Write([]byte(part + "-" + strconv.Itoa(index)))
	return rand.New(rand.NewPCG(run, name.Sum64())) //nolint:gosec // play, not secrets
}
