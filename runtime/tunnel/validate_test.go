package tunnel_test

import (
	"errors"
	"strings"
	"testing"
	"unicode/utf8"

	"connectrpc.com/connect/v2"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
	"pgregory.net/rapid"

	"github.com/raylink/raylink/runtime/tunnel"
)

// TestBinaryValuesSurviveConnectHeaders: values of any octets are unchanged by conversion to
// connect's headers and back.
func TestBinaryValuesSurviveConnectHeaders(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var h tunnel.Header
		for _, value := range rapid.SliceOf(rapid.SliceOf(rapid.Byte())).Draw(t, "values") {
			h.Add("x-bin", string(value))
		}
		var wire connect.Header
		h.CopyTo(&wire)
		back, err := tunnel.HeaderFrom(&wire)
		require.NoError(t, err)
		require.Equal(t, h, back)
		// A proxy may join the values of one key.
		if values := wire.Values("x-bin"); len(values) > 0 {
			wire.Set("x-bin", strings.Join(values, ", "))
			back, err = tunnel.HeaderFrom(&wire)
			require.NoError(t, err)
			require.Equal(t, h, back)
		}
	})
}

// TestReservedKeysAreNotMetadata: connect's headers may contain them, for the use of transports.
func TestReservedKeysAreNotMetadata(t *testing.T) {
	var h connect.Header
	for _, key := range []string{"Authorization", "Content-Type", "Raylink-Node", "Grpc-Timeout", "Sec-Fetch-Site", "Host"} {
		require.True(t, tunnel.Reserved(strings.ToLower(key)), key)
		require.Equal(t, connect.CodeInvalidArgument, connect.CodeOf(tunnel.ValidateField(strings.ToLower(key), "x")), key)
		h.Set(key, "x")
	}
	h.Set("Mine", "y")
	got, err := tunnel.HeaderFrom(&h)
	require.NoError(t, err)
	require.Equal(t, tunnel.Header{{Key: "mine", Value: "y"}}, got)
}

func TestHeaderSizeLimit(t *testing.T) {
	var h tunnel.Header
	for h.Size() <= tunnel.MaxHeaderSize-64 {
		h.Add("key", "value")
	}
	require.NoError(t, h.Validate())
	h.Add("key", strings.Repeat("x", 64))
	require.Equal(t, connect.CodeResourceExhausted, connect.CodeOf(h.Validate()))
}

func TestUnsendableNamesTheField(t *testing.T) {
	bad := "caf\xe9"
	part := &descriptorpb.UninterpretedOption_NamePart{NamePart: new("x")} // is_extension is required
	for why, msg := range map[string]proto.Message{
		"the field google.protobuf.StringValue.value is a string that is not UTF-8": wrapperspb.String(bad),
		"the field google.protobuf.Value.string_value is a string that is not UTF-8": &structpb.ListValue{Values: []*structpb.Value{
			structpb.NewNumberValue(1), structpb.NewStructValue(&structpb.Struct{Fields: map[string]*structpb.Value{"k": structpb.NewStringValue(bad)}}),
		}},
		"the field google.protobuf.Struct.FieldsEntry.key is a string that is not UTF-8": &structpb.Struct{
			Fields: map[string]*structpb.Value{bad: structpb.NewBoolValue(true)},
		},
		"the required field google.protobuf.UninterpretedOption.NamePart.is_extension is not set": &descriptorpb.FileOptions{
			UninterpretedOption: []*descriptorpb.UninterpretedOption{{Name: []*descriptorpb.UninterpretedOption_NamePart{part}}},
		},
	} {
		request := tunnel.CheckMessage("/p.S/M", true, msg)
		require.Equal(t, connect.CodeInvalidArgument, connect.CodeOf(request))
		require.EqualError(t, request, "invalid_argument: a request of p.S/M can't be sent: "+strings.TrimSuffix(why, ".")+hint(why))
		response := tunnel.CheckMessage("/p.S/M", false, msg)
		require.Equal(t, connect.CodeInternal, connect.CodeOf(response))
		require.ErrorContains(t, response, "a response of p.S/M can't be sent: "+why)
	}
	// Strings of proto2 may have any bytes, as for protobuf's own encoder.
	require.NoError(t, tunnel.CheckMessage("/p.S/M", true, &descriptorpb.UninterpretedOption{IdentifierValue: new(bad)}))
	require.NoError(t, tunnel.CheckMessage("/p.S/M", true, nil))
}

func hint(why string) string {
	if strings.HasSuffix(why, "UTF-8") {
		return "; use bytes for other data"
	}
	return ""
}

func TestNormalizeError(t *testing.T) {
	fine := connect.NewError(connect.CodeAborted, "fine").WithDetail(&connect.ErrorDetail{Type: "a.B", Value: []byte{0xff}})
	require.Same(t, fine, tunnel.NormalizeError(fine), "an error that needs no change")
	rapid.Check(t, func(t *rapid.T) {
		given := connect.NewError(connect.Code(rapid.Uint32().Draw(t, "code")), string(rapid.SliceOfN(rapid.Byte(), 0, 40<<10).Draw(t, "text")))
		for range rapid.IntRange(0, 3).Draw(t, "details") {
			given = given.WithDetail(&connect.ErrorDetail{
				Type: string(rapid.SliceOf(rapid.Byte()).Draw(t, "type")), Value: make([]byte, rapid.IntRange(0, 20<<10).Draw(t, "size")),
			})
		}
		got := tunnel.NormalizeError(given)
		require.GreaterOrEqual(t, got.Code(), connect.CodeCanceled)
		require.LessOrEqual(t, got.Code(), connect.CodeUnauthenticated)
		require.True(t, utf8.ValidString(got.Message()))
		size := len(got.Message())
		for _, d := range got.Details() {
			require.True(t, utf8.ValidString(d.Type))
			size += len(d.Type) + len(d.Value)
		}
		require.LessOrEqual(t, size, tunnel.MaxErrorSize)
		require.True(t, errors.Is(got, given) || got == given)
		require.Same(t, got, tunnel.NormalizeError(got), "normalizing is idempotent")
	})
}

func TestOrdinaryKeysAreValid(t *testing.T) {
	for _, key := range []string{"x-tenant", "tenant", "traceparent", "idempotency-key", "x-request-id", "cache-control", "b3"} {
		require.NoError(t, tunnel.ValidateField(key, "value"), key)
	}
}
