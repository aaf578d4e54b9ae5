package brain_test

import (
	"context"
	"testing"

	"connectrpc.com/connect/v2"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/raylink/raylink/brain"
	brainv1 "github.com/raylink/raylink/gen/raylink/brain/v1"
	nodev1 "github.com/raylink/raylink/gen/raylink/node/v1"
)

const notUTF8 = "caf\xe9"

// TestTextThatIsNotUTF8IsRefusedAlone makes each text field of each request invalid in turn, as a
// caller in Brain's own process can, which has no connection that checks text. The request is
// refused with the field's name, and Brain continues to work.
func TestTextThatIsNotUTF8IsRefusedAlone(t *testing.T) {
	s := start(t, brain.Options{})
	at := host(7, "127.0.0.1:7")
	node := s.register(t, "", "worker", at)
	stream, err := s.client.Watch(t.Context())
	require.NoError(t, err)
	require.NoError(t, stream.Send(&brainv1.WatchRequest{Add: []string{node.GetNid()}}))
	_, err = stream.Receive()
	require.NoError(t, err)

	text := func() map[string]*nodev1.Value {
		return map[string]*nodev1.Value{"key": {Kind: &nodev1.Value_StringValue{StringValue: "value"}}}
	}
	service := s.Service()
	refused := 0
	for _, request := range []struct {
		req  proto.Message
		call func(context.Context, proto.Message) error
	}{
		{
			&brainv1.RegisterRequest{
				Parent: node.GetNid(), Type: "t", Service: "s", Alias: "a", Attributes: text(), Launcher: at, RequestId: node.GetNid(),
			},
			func(ctx context.Context, m proto.Message) error {
				_, err := service.Register(ctx, m.(*brainv1.RegisterRequest))
				return err
			},
		},
		{
			&brainv1.UpdateRequest{Changes: []*brainv1.Change{{
				Nid: node.GetNid(), Incarnation: 1, Host: at, SetAttributes: text(), DeleteAttributes: []string{"old"}, Cause: "c",
			}}},
			func(ctx context.Context, m proto.Message) error {
				_, err := service.Update(ctx, m.(*brainv1.UpdateRequest))
				return err
			},
		},
		{
			&brainv1.RemoveRequest{Nids: []string{node.GetNid()}, Cause: "c"},
			func(ctx context.Context, m proto.Message) error {
				_, err := service.Remove(ctx, m.(*brainv1.RemoveRequest))
				return err
			},
		},
		{
			&brainv1.ReportHostRequest{HostId: host(8, "").GetId(), Cause: "c"},
			func(ctx context.Context, m proto.Message) error {
				_, err := service.ReportHost(ctx, m.(*brainv1.ReportHostRequest))
				return err
			},
		},
		{
			&brainv1.LookupRequest{Where: &brainv1.Where{By: &brainv1.Where_Any{Any: "a"}}},
			func(ctx context.Context, m proto.Message) error {
				_, err := service.Lookup(ctx, m.(*brainv1.LookupRequest))
				return err
			},
		},
		{
			&brainv1.ListRequest{Root: node.GetNid()},
			func(ctx context.Context, m proto.Message) error {
				_, err := service.List(ctx, m.(*brainv1.ListRequest))
				return err
			},
		},
	} {
		for _, invalid := range invalidText(request.req.ProtoReflect()) {
			err := request.call(t.Context(), invalid)
			require.Equal(t, connect.CodeInvalidArgument, connect.CodeOf(err), "%v: %v", invalid, err)
			require.ErrorContains(t, err, "is not UTF-8")
			refused++
		}
	}
	require.Greater(t, refused, 20)
	at.Machine = notUTF8
	require.Equal(t, connect.CodeInvalidArgument, connect.CodeOf(s.SetHost(t.Context(), at)))

	require.NoError(t, s.Err())
	_, err = s.client.Update(t.Context(), &brainv1.UpdateRequest{Changes: []*brainv1.Change{{
		Nid: node.GetNid(), Incarnation: 1, SetAttributes: text(),
	}}})
	require.NoError(t, err)
	res, err := stream.Receive()
	require.NoError(t, err)
	require.Contains(t, res.GetNodes()[0].GetAttributes(), "key")
}

// invalidText returns copies of a message, each with one text that is not UTF-8.
func invalidText(m protoreflect.Message) []proto.Message {
	var invalid []proto.Message
	each := func(change func(protoreflect.Message)) {
		c := proto.Clone(m.Interface()).ProtoReflect()
		change(c)
		invalid = append(invalid, c.Interface())
	}
	bad := protoreflect.ValueOfString(notUTF8)
	m.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch text := fd.Kind() == protoreflect.StringKind; {
		case fd.IsMap():
			v.Map().Range(func(key protoreflect.MapKey, value protoreflect.Value) bool {
				each(func(c protoreflect.Message) { c.Mutable(fd).Map().Set(bad.MapKey(), value) })
				for _, inner := range invalidText(value.Message()) {
					each(func(c protoreflect.Message) {
						c.Mutable(fd).Map().Set(key, protoreflect.ValueOfMessage(inner.ProtoReflect()))
					})
				}
				return true
			})
		case fd.IsList() && text:
			each(func(c protoreflect.Message) { c.Mutable(fd).List().Append(bad) })
		case fd.IsList():
			for _, inner := range invalidText(v.List().Get(0).Message()) {
				each(func(c protoreflect.Message) {
					c.Mutable(fd).List().Append(protoreflect.ValueOfMessage(inner.ProtoReflect()))
				})
			}
		case text:
			each(func(c protoreflect.Message) { c.Set(fd, bad) })
		case fd.Kind() == protoreflect.MessageKind:
			for _, inner := range invalidText(v.Message()) {
				each(func(c protoreflect.Message) { c.Set(fd, protoreflect.ValueOfMessage(inner.ProtoReflect())) })
			}
		}
		return true
	})
	return invalid
}
