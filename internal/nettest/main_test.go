package nettest

import (
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"testing"

	"go.uber.org/goleak"
)

// serveAt is the environment variable that makes this binary a server, which sends back what it
// receives: it has the address.
const serveAt = "RAYLINK_TEST_NETTEST_SERVE"

func TestMain(m *testing.M) {
	// The race detector delays the exit of every process by a second.
	if err := os.Setenv("GORACE", "atexit_sleep_ms=0"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	address := os.Getenv(serveAt)
	if address == "" {
		goleak.VerifyTestMain(m)
		return
	}
	l, err := net.Listen("tcp", address)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	go echo(l)
	fmt.Println("serving")
	_, _ = io.Copy(io.Discard, os.Stdin)
	os.Exit(0)
}

// echo sends back what is received, until the listener is closed. Then it closes its connections:
// the other ends can't, where links are cut.
func echo(l net.Listener) {
	var conns []net.Conn
	var open sync.WaitGroup
	for {
		conn, err := l.Accept()
		if err != nil {
			break
		}
		conns = append(conns, conn)
		open.Go(func() { _, _ = io.Copy(conn, conn) })
	}
	for _, conn := range conns {
		_ = conn.Close()
	}
	open.Wait()
}
