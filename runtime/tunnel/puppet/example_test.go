package puppet_test

import (
	"context"
	"fmt"

	"connectrpc.com/connect/v2"

	"github.com/raylink/raylink/runtime/tunnel"
	"github.com/raylink/raylink/runtime/tunnel/memnet"
	"github.com/raylink/raylink/runtime/tunnel/puppet"
)

// The dialling side performs the handshake as always, and then sends a frame of a kind that does
// not exist. The accepting side ends the connection.
func Example() {
	ctx := context.Background()
	near, far := memnet.Pipe()
	accepted := make(chan *tunnel.Conn, 1)
	go func() {
		conn, err := tunnel.Accept(ctx, far, tunnel.Config{}, tunnel.Welcome{Host: "server"},
			func(tunnel.Hello) (tunnel.Handler, error) { return tunnel.ServerHandler(connect.NewServer()), nil })
		if err != nil {
			fmt.Println(err)
			return
		}
		accepted <- conn
	}()
	peer := puppet.New(near)
	conn, err := tunnel.Dial(ctx, peer, tunnel.Hello{Client: "puppet", Host: "server"}, tunnel.Config{})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer func() { _ = conn.Close() }()
	server := <-accepted

	if err := peer.Seize(); err != nil {
		fmt.Println(err)
		return
	}
	if _, err := near.Write(puppet.Frame(0xfe, 0, 1)); err != nil {
		fmt.Println(err)
		return
	}
	<-server.Done()
	fmt.Println(server.Err())
	// Output:
	// tunnel: protocol violation: a frame of unknown kind 0xfe
}
