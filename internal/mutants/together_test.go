package mutants

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// TestMutantsBuiltTogether has one binary for several mutants, of which each run has one.
func TestMutantsBuiltTogether(t *testing.T) {
	t.Parallel()
	low := Edit{File: clamp, Func: "Clamp", Original: "if n < low { return low }", Mutated: "_ = low"}
	all := []Mutant{
		{Name: "detected", Edit: low, Test: "TestClamp", Prints: `clamp 0: 0`},
		{Name: "survivor", Edit: Edit{File: clamp, Original: "n > high", Mutated: "false"}, Test: "TestClamp"},
		{
			Name: "two edits", Edit: Edit{File: clamp, Original: "return low", Mutated: "return high"},
			Also: []Edit{{File: clamp, Original: "return 2", Mutated: "return 3"}}, Test: "TestClamp", Prints: `clamp 0: 3`,
		},
		{Name: "no body", Edit: Edit{File: clamp, Original: "n, low, high int", Mutated: "n, high, low int"}, Test: "TestClamp"},
		{Name: "alone", Edit: low, Test: "TestClamp", Alone: true},
		{Name: "another package", Edit: low, Test: "TestMutantsBuiltTogether", Package: "internal/mutants"},
	}
	together := GroupMutants(all, root(t), t.TempDir())
	for i, want := range []error{nil, ErrSurvived, nil} {
		require.NotNil(t, together[i], all[i].Name)
		out, err := together[i].Run(t.Context(), &all[i], t.TempDir())
		require.ErrorIs(t, err, want, "%s: %s", all[i].Name, out)
		require.NotContains(t, out, "not built together")
	}
	require.Same(t, together[0], together[2])
	for i := 3; i < len(all); i++ {
		require.Nil(t, together[i], all[i].Name)
	}
}

// TestMutantsThatCannotBeBuiltTogether are built alone, so that only the broken ones fail.
func TestMutantsThatCannotBeBuiltTogether(t *testing.T) {
	t.Parallel()
	all := []Mutant{
		{Name: "detected", Edit: Edit{File: clamp, Original: "n < low", Mutated: "false"}, Test: "TestClamp"},
		{Name: "types", Edit: Edit{File: clamp, Original: "n < low", Mutated: `n < "low"`}, Test: "TestClamp"},
	}
	together := GroupMutants(all, root(t), t.TempDir())
	for i, want := range []error{nil, ErrBuild} {
		out, err := together[i].Run(t.Context(), &all[i], t.TempDir())
		require.ErrorIs(t, err, want, "%s: %s", all[i].Name, out)
	}
}

// TestMostMutantsAreBuiltTogether says which are not.
func TestMostMutantsAreBuiltTogether(t *testing.T) {
	t.Parallel()
	all := All()
	binaries := make(map[*Together]bool)
	var alone []string
	for i, in := range GroupMutants(all, root(t), t.TempDir()) {
		if in == nil {
			alone = append(alone, all[i].Name)
		} else {
			binaries[in] = true
		}
	}
	t.Logf("%d of %d mutants are in %d binaries, but for %v", len(all)-len(alone), len(all), len(binaries), alone)
	require.Less(t, len(alone), len(all)/4)
}
