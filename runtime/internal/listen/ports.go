package listen

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"strconv"
	"strings"
	"syscall"

	"connectrpc.com/connect/v2"
)

// listenTCP binds the address, with a port of the range where it has none.
func listenTCP(ctx context.Context, config Config) (net.Listener, error) {
	host, port, err := net.SplitHostPort(config.Address)
	if config.Ports == "" || err != nil || port != "0" {
		l, err := config.Listen(ctx, "tcp", config.Address)
		if err != nil {
			return nil, connect.Errorf(connect.CodeUnavailable, "listening on %s: %v", config.Address, err).WithCause(err)
		}
		return l, nil
	}
	first, last, err := parsePorts(config.Ports)
	if err != nil {
		return nil, err
	}
	// From a random one on, so that processes which start together don't all try the same.
	n := last - first + 1
	offset := rand.IntN(n) //nolint:gosec // it needs no secrecy
	for i := range n {
		address := net.JoinHostPort(host, strconv.Itoa(first+(offset+i)%n))
		l, err := config.Listen(ctx, "tcp", address)
		switch {
		case err == nil:
			return l, nil
		case !errors.Is(err, syscall.EADDRINUSE):
			return nil, connect.Errorf(connect.CodeUnavailable, "listening on %s: %v", address, err).WithCause(err)
		}
	}
	return nil, connect.Errorf(connect.CodeUnavailable,
		"listening on %s: all ports of the range %s are in use: each process takes one, so widen it (RAYLINK_PORT_RANGE)", host, config.Ports)
}

// parsePorts parses FIRST-LAST.
func parsePorts(text string) (first, last int, err error) {
	const bits = 16
	from, to, found := strings.Cut(text, "-")
	a, aerr := strconv.ParseUint(from, 10, bits)
	b, berr := strconv.ParseUint(to, 10, bits)
	if !found || aerr != nil || berr != nil || a == 0 || a > b {
		return 0, 0, connect.Errorf(connect.CodeInvalidArgument, "the range of ports (RAYLINK_PORT_RANGE) is %.40q: it must be of the form 7000-7100", text)
	}
	return int(a), int(b), nil
}
