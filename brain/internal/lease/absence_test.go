//go:build !unguarded

package lease

import (
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"
)

func TestNobodyDiesForTheWatchersOwnAbsence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { require.Empty(t, absent(t).all()) })
}
