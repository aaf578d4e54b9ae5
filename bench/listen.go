package main

import (
	"context"
	"net"
	"os"
	"path/filepath"
)

// dirEnv names the run's directory, which the driver removes at the end.
const dirEnv = "RAYLINK_BENCH_DIR"

// listen listens on a free loopback port (for tlsNetwork: without TLS), or on a Unix socket in
// the run's directory.
func listen(ctx context.Context, network string) (net.Listener, error) {
	address := "127.0.0.1:0"
	if network == "unix" {
		dir, err := os.MkdirTemp(os.Getenv(dirEnv), "s")
		if err != nil {
			return nil, err
		}
		address = filepath.Join(dir, "socket")
	}
	if network == tlsNetwork {
		network = "tcp"
	}
	return new(net.ListenConfig).Listen(ctx, network, address)
}
