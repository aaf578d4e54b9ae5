package records

import (
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	brainv1 "github.com/raylink/raylink/gen/raylink/brain/v1"
)

// wheres returns each way to identify a node, by a text.
func wheres(text string) []*brainv1.Where {
	return []*brainv1.Where{
		{By: &brainv1.Where_Path{Path: text}}, {By: &brainv1.Where_Alias{Alias: text}}, {By: &brainv1.Where_Nid{Nid: text}}, {By: &brainv1.Where_Any{Any: text}},
	}
}

func TestRequestsAreEncodedAsProtobufDoes(t *testing.T) {
	require.Len(t, wheres(""), (&brainv1.Where{}).ProtoReflect().Descriptor().Fields().Len(), "a way is not tested")
	unknown := &brainv1.Where{By: &brainv1.Where_Path{Path: "a-0"}}
	unknown.ProtoReflect().SetUnknown(protowire.AppendVarint(protowire.AppendTag(nil, 99, protowire.VarintType), 1))
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.StringN(0, 300, 300).Draw(t, "text")
		for _, where := range append(wheres(text), nil, &brainv1.Where{}, unknown) {
			req := &brainv1.LookupRequest{Where: where}
			want, err := proto.Marshal(req)
			require.NoError(t, err)
			got, err := AppendLookupRequest([]byte("before"), req)
			require.NoError(t, err)
			require.Equal(t, append([]byte("before"), want...), got)

			var back brainv1.LookupRequest
			require.Equal(t, where.GetBy() != nil && where != unknown, decodeLookupRequest(want, &back), "%v", req)
			back.Reset()
			require.NoError(t, UnmarshalLookupRequest(want, &back))
			require.True(t, proto.Equal(req, &back), "%v", &back)
		}
	})
	for _, where := range wheres("caf\xe9") {
		_, err := AppendLookupRequest(nil, &brainv1.LookupRequest{Where: where})
		require.ErrorContains(t, err, "not UTF-8")
	}
}

// TestRequestsAreDecodedAsProtobufDoes changes encoded requests at random: what is accepted must be
// what protobuf makes of it.
func TestRequestsAreDecodedAsProtobufDoes(t *testing.T) {
	accepted := 0
	rapid.Check(t, func(t *rapid.T) {
		where := wheres(rapid.StringN(0, 200, 200).Draw(t, "text"))[rapid.IntRange(0, 3).Draw(t, "by")]
		b, err := proto.Marshal(&brainv1.LookupRequest{Where: where})
		require.NoError(t, err)
		for range rapid.IntRange(0, 2).Draw(t, "changes") {
			at := rapid.IntRange(0, len(b)).Draw(t, "at")
			b = slices.Insert(b[:at], at, rapid.SliceOfN(rapid.Byte(), 0, 3).Draw(t, "bytes")...)
		}
		if rapid.Bool().Draw(t, "twice") {
			b = append(b, b...)
		}
		var got, want brainv1.LookupRequest
		if !decodeLookupRequest(b, &got) {
			require.True(t, proto.Equal(&got, &brainv1.LookupRequest{}), "it is not empty after a failure: %v", &got)
			return
		}
		accepted++
		require.NoError(t, proto.Unmarshal(b, &want))
		require.True(t, proto.Equal(&want, &got), "%v\n%v", &want, &got)
		clear(b)
		require.True(t, proto.Equal(&want, &got), "it aliases what it was decoded from")
	})
	require.Positive(t, accepted)
}
