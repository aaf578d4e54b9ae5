//go:build unguarded

package tree

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	brainv1 "github.com/raylink/raylink/gen/raylink/brain/v1"
)

func TestCheckSeesIndicesThatWereNotKept(t *testing.T) {
	tree, kept := New(testRoot(), Limits{}), make(disk)
	x := tree.Begin(time.Now())
	_, err := x.Register(&brainv1.RegisterRequest{Type: "worker"})
	require.NoError(t, err)
	kept.write(t, x)
	x.Merge()
	require.NoError(t, tree.check())
	_, err = Load(testRoot(), Limits{}, kept.entries())
	require.ErrorContains(t, err, "will be given again")
}
