package records

import (
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/timestamppb"
	"pgregory.net/rapid"

	brainv1 "github.com/raylink/raylink/gen/raylink/brain/v1"
	nodev1 "github.com/raylink/raylink/gen/raylink/node/v1"
)

// fullHost has every field of a host.
func fullHost() *nodev1.HostInfo {
	return &nodev1.HostInfo{
		Id: uuid.NewString(), Address: "10.0.0.1:7000", Socket: "/run/a", Machine: "mäkine", Pid: 7, Build: "b", Directory: "/run", Nonce: "n",
	}
}

// fullRecord has every field of a record and of its messages.
func fullRecord() *nodev1.NodeRecord {
	return &nodev1.NodeRecord{
		Nid: uuid.NewString(), Name: "b-1", Path: "a-0/b-1", Type: "b", Index: 1, Parent: uuid.NewString(), Service: "f.v1.G", Alias: "g", Incarnation: 2,
		State: nodev1.NodeState_NODE_STATE_RUNNING, Host: fullHost(),
		Attributes: map[string]*nodev1.Value{
			"i": {Kind: &nodev1.Value_Int64Value{Int64Value: -1}}, "s": {Kind: &nodev1.Value_StringValue{StringValue: "t"}}, "none": {},
		},
		Created: timestamppb.New(time.Unix(1_700_000_000, 5)), Revision: 1 << 40, Cause: "j", Restarts: true,
		Allocation: &nodev1.Allocation{Machine: "k", Name: "l", Resources: map[string]int64{"gpu": 3000, "memory": 1 << 40}, Gpus: []uint32{0, 1, 300}},
	}
}

func encoded(t require.TestingT, rec *nodev1.NodeRecord) *nodev1.NodeRecord {
	b, err := Append([]byte{}, 1, rec)
	require.NoError(t, err)
	var res brainv1.LookupResponse
	require.NoError(t, proto.Unmarshal(b, &res))
	canonical, err := proto.Marshal(&brainv1.LookupResponse{Node: rec})
	require.NoError(t, err)
	require.Len(t, b, len(canonical), "as long as protobuf's encoding")
	return res.GetNode()
}

func TestEncodedRecordHasEveryField(t *testing.T) {
	rec := fullRecord()
	for _, m := range []proto.Message{rec, rec.GetHost(), rec.GetAllocation(), rec.GetCreated()} {
		set := 0
		m.ProtoReflect().Range(func(protoreflect.FieldDescriptor, protoreflect.Value) bool { set++; return true })
		require.Equal(t, m.ProtoReflect().Descriptor().Fields().Len(), set, "the test leaves a field unset")
	}
	require.True(t, proto.Equal(rec, encoded(t, rec)), "%v", encoded(t, rec))
	require.True(t, proto.Equal(&nodev1.NodeRecord{}, encoded(t, &nodev1.NodeRecord{})))
	rec.Created, rec.Host.Pid, rec.State = timestamppb.New(time.Unix(-5, 0)), -1, -1
	rec.Allocation.Resources["debt"] = -1
	require.True(t, proto.Equal(rec, encoded(t, rec)), "negative numbers: %v", encoded(t, rec))
}

// TestEncodedRecordKeepsUnknownFields holds what newer hosts say of themselves.
func TestEncodedRecordKeepsUnknownFields(t *testing.T) {
	rec := fullRecord()
	unknown := protowire.AppendString(protowire.AppendTag(nil, 99, protowire.BytesType), "new")
	for _, m := range []proto.Message{rec, rec.GetHost(), rec.GetAllocation(), rec.GetCreated()} {
		m.ProtoReflect().SetUnknown(unknown)
	}
	require.True(t, proto.Equal(rec, encoded(t, rec)))
}

func TestLengthsOfAnySizeAreEncoded(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rec := fullRecord()
		size := rapid.OneOf(rapid.IntRange(0, 300), rapid.IntRange(16_000, 17_000), rapid.Just(1<<21)).Draw(t, "size")
		*rapid.SampledFrom([]*string{&rec.Cause, &rec.Host.Address, &rec.Allocation.Name}).Draw(t, "field") = strings.Repeat("x", size)
		require.True(t, proto.Equal(rec, encoded(t, rec)))
	})
}

func TestTextThatIsNotUTF8IsNotEncoded(t *testing.T) {
	const invalid = "caf\xe9"
	for name, spoil := range map[string]func(*nodev1.NodeRecord){
		"text": func(rec *nodev1.NodeRecord) { rec.Cause = invalid },
		"host": func(rec *nodev1.NodeRecord) { rec.Host.Machine = invalid },
		"key":  func(rec *nodev1.NodeRecord) { rec.Attributes[invalid] = &nodev1.Value{} },
		"attribute": func(rec *nodev1.NodeRecord) {
			rec.Attributes["s"] = &nodev1.Value{Kind: &nodev1.Value_StringValue{StringValue: invalid}}
		},
	} {
		rec := fullRecord()
		spoil(rec)
		_, err := Append(nil, 1, rec)
		require.Error(t, err, name)
	}
}

func BenchmarkAppend(b *testing.B) {
	rec := fullRecord()
	rec.Attributes = nil
	res := &brainv1.LookupResponse{Node: rec}
	buf := make([]byte, 0, 4096)
	b.Run("own", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := Append(buf, 1, rec); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("protobuf", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := (proto.MarshalOptions{}).MarshalAppend(buf, res); err != nil {
				b.Fatal(err)
			}
		}
	})
}
