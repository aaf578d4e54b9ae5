package invariants

import (
	"testing"
	"unsafe" //nolint:depguard // for a size

	"github.com/stretchr/testify/require"
)

func TestValueTakesNoMemoryInReleaseBuilds(t *testing.T) {
	var v Value[[4]uint64]
	if !Messages {
		require.Zero(t, unsafe.Sizeof(v))
		require.Nil(t, v.Get())
		return
	}
	v.Get()[1] = 2
	require.Equal(t, [4]uint64{0, 2}, *v.Get())
}
