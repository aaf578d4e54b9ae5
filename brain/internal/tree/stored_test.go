package tree

import (
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	brainv1 "github.com/raylink/raylink/gen/raylink/brain/v1"
	nodev1 "github.com/raylink/raylink/gen/raylink/node/v1"
)

func TestStoredNodeHasEveryField(t *testing.T) {
	for _, launcher := range []*nodev1.HostInfo{nil, {Id: NewUUID(), Machine: "a"}} {
		n := &node{rec: &nodev1.NodeRecord{Nid: NewUUID(), Host: &nodev1.HostInfo{Id: NewUUID()}}, born: 3, launcher: launcher}
		value, err := appendNode(nil, n)
		require.NoError(t, err)
		var stored brainv1.StoredNode
		require.NoError(t, proto.Unmarshal(value, &stored))
		require.True(t, proto.Equal(&brainv1.StoredNode{Record: n.rec, Born: n.born, Launcher: n.launcher}, &stored))
		require.Equal(t, 3, stored.ProtoReflect().Descriptor().Fields().Len(), "a field is new")
	}
	_, err := appendNode(nil, &node{rec: &nodev1.NodeRecord{}, launcher: &nodev1.HostInfo{Machine: "caf\xe9"}})
	require.Error(t, err)
}
