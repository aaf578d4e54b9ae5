package records

import (
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	brainv1 "github.com/raylink/raylink/gen/raylink/brain/v1"
	nodev1 "github.com/raylink/raylink/gen/raylink/node/v1"
)

// lookupOf returns the encoded response with a record.
func lookupOf(t require.TestingT, rec *nodev1.NodeRecord) []byte {
	b, err := Append(nil, 1, rec)
	require.NoError(t, err)
	return b
}

func TestDecodedRecordHasEveryField(t *testing.T) {
	for _, rec := range []*nodev1.NodeRecord{fullRecord(), {}, {Host: &nodev1.HostInfo{}, Allocation: &nodev1.Allocation{}}} {
		b := lookupOf(t, rec)
		var res brainv1.LookupResponse
		require.True(t, decodeLookup(b, &res), "%v", rec)
		require.True(t, proto.Equal(rec, res.GetNode()), "%v", res.GetNode())
		clear(b)
		require.True(t, proto.Equal(rec, res.GetNode()), "it aliases what it was decoded from")

		canonical, err := proto.Marshal(&brainv1.LookupResponse{Node: rec})
		require.NoError(t, err)
		res.Reset()
		require.True(t, decodeLookup(canonical, &res), "%v", rec)
		require.True(t, proto.Equal(rec, res.GetNode()))
		require.False(t, decodeLookup(canonical, &res), "the message was not empty")
	}
}

// TestWhatIsDecodedIsWhatProtobufDecodes changes encoded records at random: what is accepted must
// be what protobuf makes of it.
func TestWhatIsDecodedIsWhatProtobufDecodes(t *testing.T) {
	full := lookupOf(t, fullRecord())
	accepted := 0
	rapid.Check(t, func(t *rapid.T) {
		b := slices.Clone(full)
		for range rapid.IntRange(1, 3).Draw(t, "changes") {
			at := rapid.IntRange(0, len(b)-1).Draw(t, "at")
			switch rapid.IntRange(0, 2).Draw(t, "how") {
			case 0:
				b[at] = rapid.Byte().Draw(t, "byte")
			case 1:
				b = append(b[:at], b[at+1:]...)
			default:
				b = slices.Insert(b, at, rapid.Byte().Draw(t, "byte"))
			}
		}
		var got, want brainv1.LookupResponse
		if !decodeLookup(b, &got) {
			require.True(t, proto.Equal(&got, &brainv1.LookupResponse{}), "it is not empty after a failure: %v", &got)
			return
		}
		accepted++
		require.NoError(t, proto.Unmarshal(b, &want))
		require.True(t, proto.Equal(&want, &got), "%v\n%v", &want, &got)
	})
	require.Positive(t, accepted)
}

func TestWhatHasToBeMergedOrIsUnknownIsLeftToProtobuf(t *testing.T) {
	rec := lookupOf(t, fullRecord())
	unknown := protowire.AppendString(protowire.AppendTag(nil, 99, protowire.BytesType), "new")
	inside := func(more ...[]byte) []byte {
		body, n := protowire.ConsumeBytes(rec[1:])
		require.Positive(t, n)
		return protowire.AppendBytes(protowire.AppendTag(nil, 1, protowire.BytesType), slices.Concat(append([][]byte{body}, more...)...))
	}
	host, err := AppendHost(nil, 11, &nodev1.HostInfo{Pid: 9})
	require.NoError(t, err)
	for name, b := range map[string][]byte{
		"no record":             {},
		"two records":           slices.Concat(rec, rec),
		"an unknown field":      slices.Concat(rec, unknown),
		"an unknown field in a": inside(unknown),
		"two hosts":             inside(host),
		"a part":                rec[:len(rec)-1],
		"no UTF-8":              inside(protowire.AppendString(protowire.AppendTag(nil, 15, protowire.BytesType), "caf\xe9")),
		"an attribute of none":  inside(protowire.AppendBytes(protowire.AppendTag(nil, 12, protowire.BytesType), []byte{1<<3 | 2, 1, 'a'})),
		"a long number":         inside([]byte{5 << 3, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2}),
	} {
		var res brainv1.LookupResponse
		require.False(t, decodeLookup(b, &res), name)
		require.Nil(t, res.GetNode(), name)
	}
}

func BenchmarkDecodeLookup(b *testing.B) {
	rec := fullRecord()
	rec.Attributes = nil
	encoded := lookupOf(b, rec)
	b.Run("own", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			var res brainv1.LookupResponse
			if !decodeLookup(encoded, &res) {
				b.Fatal("not decoded")
			}
		}
	})
	b.Run("protobuf", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			var res brainv1.LookupResponse
			if err := proto.Unmarshal(encoded, &res); err != nil {
				b.Fatal(err)
			}
		}
	})
}
