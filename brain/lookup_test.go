package brain_test

import (
	"testing"

	"connectrpc.com/connect/v2"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"github.com/raylink/raylink/brain"
	brainv1 "github.com/raylink/raylink/gen/raylink/brain/v1"
)

// TestEncodedLookupIsTheServices shows that a lookup has the same result whichever way it comes.
func TestEncodedLookupIsTheServices(t *testing.T) {
	s := start(t, brain.Options{})
	manager := s.register(t, "", "manager", host(1, "127.0.0.1:1"))
	gone := s.register(t, manager.GetNid(), "worker", nil)
	_, err := s.client.Remove(t.Context(), &brainv1.RemoveRequest{Nids: []string{gone.GetNid()}, Cause: "stopped by its owner"})
	require.NoError(t, err)
	aliased, err := s.client.Register(t.Context(), &brainv1.RegisterRequest{Type: "replay", Alias: "buffer"})
	require.NoError(t, err)
	for _, where := range []*brainv1.Where{
		nil,
		{},
		{By: &brainv1.Where_Path{Path: manager.GetPath()}},
		{By: &brainv1.Where_Path{Path: "BRAIN"}},
		{By: &brainv1.Where_Path{Path: "manager-0//worker-0"}},
		{By: &brainv1.Where_Path{Path: "/"}},
		{By: &brainv1.Where_Path{}},
		{By: &brainv1.Where_Path{Path: "menager-0"}},
		{By: &brainv1.Where_Path{Path: gone.GetPath()}},
		{By: &brainv1.Where_Nid{Nid: aliased.GetNodes()[0].GetNid()}},
		{By: &brainv1.Where_Nid{Nid: "none"}},
		{By: &brainv1.Where_Alias{Alias: "buffer"}},
		{By: &brainv1.Where_Any{Any: "buffer"}},
	} {
		req := &brainv1.LookupRequest{Where: where}
		want, wantErr := s.Service().Lookup(t.Context(), req)
		response, err := s.AppendLookup([]byte("before"), req)
		if wantErr != nil {
			require.Equal(t, connect.CodeOf(wantErr), connect.CodeOf(err), "%v: %v", req, err)
			require.Equal(t, wantErr.Error(), err.Error(), "%v", req)
			require.Equal(t, "before", string(response))
			continue
		}
		require.NoError(t, err, "%v", req)
		var got brainv1.LookupResponse
		require.NoError(t, proto.Unmarshal(response[len("before"):], &got))
		require.True(t, proto.Equal(want, &got), "%v: %v", req, &got)
	}
}
