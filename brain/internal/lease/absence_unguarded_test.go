//go:build unguarded

package lease

import (
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"
)

func TestAbsenceWithoutItsGuardKillsAllHosts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { require.Len(t, absent(t).all(), 3) })
}
