// Package seed provides independent random numbers for each part of a run.
//
// A run has one seed. Each part that draws (an environment, an exploring policy, a learner's
// initial weights) has a named stream, so that a part that draws more, or starts later, does not
// affect the others.
package seed

import (
	"hash/fnv"
	"math/rand/v2"
	"strconv"
)

// Stream returns the random numbers of one part of a run: equal for equal arguments, independent
// otherwise.
func Stream(run uint64, part string, index int) *rand.Rand {
	name := fnv.New64a()
	// Writing to a hash never fails.
	_, _ = name.Write([]byte(part + "-" + strconv.Itoa(index)))
	return rand.New(rand.NewPCG(run, name.Sum64())) //nolint:gosec // not used for cryptography
}
