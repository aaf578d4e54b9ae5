package memnet_test

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/raylink/raylink/runtime/tunnel/memnet"
)

// A server echoes what it receives, until the link to it is cut.
func Example() {
	network := memnet.New()
	listener, err := network.Listen("server:1")
	if err != nil {
		fmt.Println(err)
		return
	}
	go func() {
		conn, err := listener.Accept()
		if err == nil {
			_, _ = io.Copy(conn, conn)
		}
	}()

	conn, err := network.Dial(context.Background(), "server:1")
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Fprint(conn, "hello")
	answer := make([]byte, 5)
	_, err = io.ReadFull(conn, answer)
	fmt.Println(string(answer), err)

	network.Cut("server:1")
	_, err = conn.Read(answer)
	fmt.Println(errors.Is(err, memnet.ErrCut))
	// Output:
	// hello <nil>
	// true
}
