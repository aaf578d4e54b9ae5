//go:build unguarded

package launch

import (
	"bytes"
	"testing"

	"github.com/stretchr/testify/require"
)

// The checker of the handshake notices a parent that keeps a process of another build.
func TestCheckerNoticesAParentThatListensToAnyBuild(t *testing.T) {
	var wire bytes.Buffer
	require.NoError(t, writeFrame(&wire, kindHello, versioned([]byte("another"))))
	_, err := converse(wire.Bytes())
	require.ErrorContains(t, err, "had not said that it is this build")
}
