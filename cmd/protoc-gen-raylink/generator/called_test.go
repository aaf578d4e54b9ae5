package generator_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"testing"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connectinprocess"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	shapesv1 "github.com/raylink/raylink/cmd/protoc-gen-raylink/generator/testdata/shapes"
	"github.com/raylink/raylink/cmd/protoc-gen-raylink/generator/testdata/shapes/shapesv1raylink"
)

// parrot implements some of the methods; the others are left to what it embeds.
type parrot struct {
	shapesv1raylink.UnimplementedEchoNode
}

func (parrot) Say(_ context.Context, req *shapesv1.EchoRequest) (*shapesv1.EchoResponse, error) {
	if req.GetText() == "" {
		return nil, connect.NewError(connect.CodeInvalidArgument, "say what?")
	}
	return &shapesv1.EchoResponse{Text: req.GetText()}, nil
}

func (parrot) Repeat(_ context.Context, req *shapesv1.EchoRequest, stream shapesv1raylink.EchoRepeatServerStream) error {
	for _, letter := range req.GetText() {
		if err := stream.Send(&shapesv1.EchoResponse{Text: string(letter)}); err != nil {
			return err
		}
	}
	return nil
}

func (parrot) Join(_ context.Context, stream shapesv1raylink.EchoJoinServerStream) (*shapesv1.EchoResponse, error) {
	var all string
	for {
		req, err := stream.Receive()
		if errors.Is(err, io.EOF) {
			return &shapesv1.EchoResponse{Text: all}, nil
		}
		if err != nil {
			return nil, err
		}
		all += req.GetText()
	}
}

func (parrot) Chat(_ context.Context, stream shapesv1raylink.EchoChatServerStream) error {
	for {
		req, err := stream.Receive()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := stream.Send(&shapesv1.EchoResponse{Text: req.GetText() + "!"}); err != nil {
			return err
		}
	}
}

// TestGeneratedCodeIsCalled calls a method of each shape, through the local stub and through both
// tunnel adapters.
func TestGeneratedCodeIsCalled(t *testing.T) {
	defer goleak.VerifyNone(t) // neither the stub nor the adapters have to be closed
	for way, dial := range map[string]func() *shapesv1raylink.Echo{
		"local": func() *shapesv1raylink.Echo { return shapesv1raylink.NewLocalEcho(parrot{}) },
		"tunnel": func() *shapesv1raylink.Echo {
			server := connect.NewServer()
			shapesv1raylink.RegisterEchoTunnel(server, parrot{})
			return shapesv1raylink.NewEchoTunnel(connect.NewClient(connectinprocess.New(server)))
		},
	} {
		t.Run(way, func(t *testing.T) {
			echo := dial()
			t.Run("unary", func(t *testing.T) {
				res, err := echo.Say(t.Context(), &shapesv1.EchoRequest{Text: "polly"})
				require.NoError(t, err)
				assert.Equal(t, "polly", res.GetText())

				_, err = echo.Say(t.Context(), nil)
				assert.Equal(t, connect.CodeInvalidArgument, connect.CodeOf(err))
			})
			t.Run("async", func(t *testing.T) {
				later := echo.SayAsync(t.Context(), &shapesv1.EchoRequest{Text: "later"})
				res, err := later.Get(t.Context())
				require.NoError(t, err)
				assert.Equal(t, "later", res.GetText())
			})
			t.Run("unimplemented", func(t *testing.T) {
				_, err := echo.Now(t.Context(), &shapesv1.EchoRequest{})
				assert.Equal(t, connect.CodeUnimplemented, connect.CodeOf(err))
				require.ErrorContains(t, err, "shapes.v1.Echo/Now is not implemented")
			})
			t.Run("server stream", func(t *testing.T) {
				stream, err := echo.Repeat(t.Context(), &shapesv1.EchoRequest{Text: "abc"})
				require.NoError(t, err)
				for _, want := range []string{"a", "b", "c"} {
					res, err := stream.Receive()
					require.NoError(t, err)
					assert.Equal(t, want, res.GetText())
				}
				_, err = stream.Receive()
				require.ErrorIs(t, err, io.EOF)
				require.NoError(t, stream.Close())
			})
			t.Run("client stream", func(t *testing.T) {
				stream, err := echo.Join(t.Context())
				require.NoError(t, err)
				for _, text := range []string{"a", "b", "c"} {
					require.NoError(t, stream.Send(&shapesv1.EchoRequest{Text: text}))
				}
				res, err := stream.CloseAndReceive()
				require.NoError(t, err)
				assert.Equal(t, "abc", res.GetText())
			})
			t.Run("bidi stream", func(t *testing.T) {
				stream, err := echo.Chat(t.Context())
				require.NoError(t, err)
				for _, text := range []string{"a", "b"} {
					require.NoError(t, stream.Send(&shapesv1.EchoRequest{Text: text}))
					res, err := stream.Receive()
					require.NoError(t, err)
					assert.Equal(t, text+"!", res.GetText())
				}
				require.NoError(t, stream.CloseSend())
				_, err = stream.Receive()
				require.ErrorIs(t, err, io.EOF)
			})
		})
	}
}

func TestHandlesPrintServiceAndPath(t *testing.T) {
	echo := shapesv1raylink.NewLocalEcho(parrot{})
	assert.Equal(t, "Echo(parrot)", fmt.Sprint(echo))
	assert.Equal(t, "Echo(no node)", fmt.Sprint(new(shapesv1raylink.Echo)))
	assert.Equal(t, "<nil>", fmt.Sprint((*shapesv1raylink.Echo)(nil)))
}
