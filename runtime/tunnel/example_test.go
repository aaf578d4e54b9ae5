package tunnel_test

import (
	"context"
	"fmt"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/raylink/raylink/runtime/tunnel"
	"github.com/raylink/raylink/runtime/tunnel/memnet"
)

// The accepting side serves the methods of a connect server, and the dialling side calls them.
// Generated code registers methods and makes clients in the same way.
func Example() {
	ctx := context.Background()
	greet := connect.Spec{Procedure: "/example.v1.GreeterService/Greet", StreamType: connect.StreamTypeUnary}
	server := connect.NewServer()
	server.Register(connect.Method{
		Spec: greet,
		Handler: func(_ context.Context, _ connect.Spec, stream connect.ServerStream) error {
			name := &wrapperspb.StringValue{}
			if err := stream.Receive(name); err != nil {
				return err
			}
			return stream.Send(wrapperspb.String("Hello, " + name.GetValue()))
		},
	})

	cfg := tunnel.Config{Token: "both sides know it"}
	near, far := memnet.Pipe() // in a program, the two ends of a TCP connection or a Unix socket
	accepted := make(chan *tunnel.Conn, 1)
	go func() {
		conn, err := tunnel.Accept(ctx, far, cfg, tunnel.Welcome{Host: "server"},
			func(tunnel.Hello) (tunnel.Handler, error) { return tunnel.ServerHandler(server), nil })
		if err != nil {
			fmt.Println(err)
		}
		accepted <- conn
	}()
	conn, err := tunnel.Dial(ctx, near, tunnel.Hello{Client: "client", Host: "server"}, cfg)
	if err != nil {
		fmt.Println(err)
		return
	}

	greeting := &wrapperspb.StringValue{}
	client := connect.NewClient(conn.Transport("greeter-0", "learner-0"))
	err = client.CallUnary(ctx, greet, wrapperspb.String("Ada"), greeting)
	fmt.Println(greeting.GetValue(), err)

	fmt.Println(conn.Shutdown(ctx))
	<-(<-accepted).Done()
	// Output:
	// Hello, Ada <nil>
	// <nil>
}
