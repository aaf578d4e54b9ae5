package tunnel_test

import (
	"io"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/raylink/raylink/runtime/tunnel"
	"github.com/raylink/raylink/runtime/tunnel/memnet"
)

func TestUnreadReturnsPeekedBytesFirst(t *testing.T) {
	near, far := memnet.Pipe()
	_, err := near.Write([]byte("hello"))
	require.NoError(t, err)
	require.NoError(t, near.Close())
	head := make([]byte, 2)
	_, err = io.ReadFull(far, head)
	require.NoError(t, err)
	all, err := io.ReadAll(tunnel.Unread(far, head))
	require.NoError(t, err)
	require.Equal(t, "hello", string(all))
	require.NoError(t, far.Close())
}

func TestTunnelOverPeekedConnection(t *testing.T) {
	near, far := sockets(t)
	accepted := make(chan *tunnel.Conn, 1)
	go func() {
		head := make([]byte, len(tunnel.Preface))
		if _, err := io.ReadFull(far, head); err != nil {
			t.Error(err)
		}
		conn, err := tunnel.Accept(t.Context(), tunnel.Unread(far, head), tunnel.Config{}, self, admit(echo()))
		if err != nil {
			t.Error(err)
		}
		accepted <- conn
	}()
	client, err := tunnel.Dial(t.Context(), near, tunnel.Hello{}, tunnel.Config{})
	require.NoError(t, err)
	server := <-accepted
	roundTrip(t, client, 100)
	roundTrip(t, client, 1<<20)
	require.NoError(t, client.Close())
	require.NoError(t, server.Close())
}
