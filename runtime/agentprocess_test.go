package runtime

import (
	"testing"

	"connectrpc.com/connect/v2"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	machinev1 "github.com/raylink/raylink/gen/raylink/machine/v1"
	"github.com/raylink/raylink/runtime/launch"
)

// Nodes are only set up in a process that is certain to have what their creator has.
func TestOtherProgramsTakeNoNodesIntoTheirProcess(t *testing.T) {
	t.Parallel()
	k := &machineKeeper{host: &Host{types: &typeSet{}}, declared: &machinev1.Machine{Name: "gpu1"}}
	refused := func(build, payload string) error {
		_, err := k.launch(t.Context(), &machinev1.LaunchSpec{InProcess: true, Build: build}, launch.Spec{Payload: []byte(payload)})
		return err
	}
	err := refused("another", "{}")
	assert.Equal(t, connect.CodeFailedPrecondition, connect.CodeOf(err))
	require.ErrorContains(t, err, "on gpu1: the process that keeps the machine is of another program")
	require.ErrorContains(t, err, "run the creator's program as the agent (join.Agent), or give nodes processes of their own (OwnProcess)")
	err = refused(launch.Build(), `{"Type": "Learner"}`)
	assert.Equal(t, connect.CodeFailedPrecondition, connect.CodeOf(err))
	require.ErrorContains(t, err, "on gpu1: the process that keeps the machine lacks the type of the new nodes")
	require.ErrorContains(t, refused(launch.Build(), "{"), "reading what to launch")
}
