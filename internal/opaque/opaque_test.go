package opaque_test

import (
	"bytes"
	"encoding/json"
	"testing"

	"connectrpc.com/connect/v2/connectproto"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	nodev1 "github.com/raylink/raylink/gen/raylink/node/v1"
	"github.com/raylink/raylink/internal/opaque"
)

func packed(t *testing.T, msg proto.Message) *anypb.Any {
	t.Helper()
	out, err := anypb.New(msg)
	require.NoError(t, err)
	return out
}

// TestEveryAnyIsWrittenAndReadBack: beside one that can't be expressed all others keep their usual
// form.
func TestEveryAnyIsWrittenAndReadBack(t *testing.T) {
	t.Parallel()
	unknown := &anypb.Any{TypeUrl: "type.googleapis.com/elsewhere.Unknown", Value: []byte("\x0a\x05world")}
	good := packed(t, durationpb.New(1e9))
	for name, member := range map[string]*anypb.Any{
		"unknown type":           unknown,
		"not an encoded message": {TypeUrl: good.GetTypeUrl(), Value: []byte("\x0f")},
		"out of JSON's range":    packed(t, &timestamppb.Timestamp{Seconds: 1 << 60}),
		"without a type":         {Value: []byte("x")},
		"nested":                 packed(t, packed(t, &nodev1.CreateRequest{Alias: "kept", Config: unknown})),
	} {
		msg := &nodev1.CreateRequest{Configs: []*anypb.Any{good, member, good}}
		_, err := newPlain(msg)
		require.Error(t, err, "%s: protobuf's own JSON has a form for it", name)
		var b bytes.Buffer
		codec := opaque.New()
		require.NoError(t, codec.MarshalWrite(t.Context(), &b, msg), name)
		require.True(t, json.Valid(b.Bytes()), name)
		require.Contains(t, b.String(), `"1s"`, "%s: %s", name, &b)
		if name == "nested" {
			require.Contains(t, b.String(), `"kept"`)
		}
		got := &nodev1.CreateRequest{}
		plain := bytes.NewReader(b.Bytes())
		require.NoError(t, codec.UnmarshalRead(t.Context(), &b, got), name)
		if name != "nested" { // what is nested is restored where its Any is read
			require.True(t, proto.Equal(msg, got), "%s: %v", name, got)
		}
		require.NoError(t, connectproto.NewJSONCodec().UnmarshalRead(t.Context(), plain, new(nodev1.CreateRequest)), "%s: any parser reads it", name)
		b.Reset()
		require.NoError(t, codec.MarshalWriteStable(t.Context(), &b, msg), name)
	}
}

// TestOrdinaryMessagesKeepTheirForm: neither they nor other errors are touched.
func TestOrdinaryMessagesKeepTheirForm(t *testing.T) {
	t.Parallel()
	msg := &nodev1.CreateRequest{Configs: []*anypb.Any{packed(t, durationpb.New(1e9))}}
	want, err := newPlain(msg)
	require.NoError(t, err)
	var b bytes.Buffer
	require.NoError(t, opaque.New().MarshalWriteStable(t.Context(), &b, msg))
	require.JSONEq(t, want, b.String())
	require.Error(t, opaque.New().MarshalWrite(t.Context(), &b, "no message"))
	require.Error(t, opaque.New().MarshalWrite(t.Context(), &b, &nodev1.CreateRequest{Alias: "\xff"}))
}

func newPlain(msg proto.Message) (string, error) {
	var b bytes.Buffer
	err := connectproto.NewJSONCodec().MarshalWriteStable(nil, &b, msg) //nolint:staticcheck // it uses none
	return b.String(), err
}
