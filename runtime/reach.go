package runtime

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"time"

	nodev1 "github.com/raylink/raylink/gen/raylink/node/v1"
	"github.com/raylink/raylink/runtime/internal/listen"
)

// warnUnreachable warns if this host joins a Brain on another machine but listens on loopback: its
// nodes will be found from there, and calls to them will fail or reach another process. It is no
// error, because a process that creates no nodes is not affected.
func (h *Host) warnUnreachable(ctx context.Context, brain string, at *nodev1.HostInfo) {
	if !listen.IsLoopback(listen.HostOf(h.listener.Advertised())) || !isElsewhere(ctx, brain, at.GetMachine(), h.machine) {
		return
	}
	h.log.Warn("Brain is on another machine, and this process listens on loopback only: the nodes that it creates cannot be reached from there. "+
		"Listen on an address that other machines reach: WithListen or RAYLINK_LISTEN, such as HOST:0, with WithAdvertise or RAYLINK_ADVERTISE where "+
		"they know this machine by another address", slog.String("brain", brain), slog.String("listen", h.listener.Advertised()))
}

// resolveTimeout bounds the name lookup for the warning.
const resolveTimeout = time.Second

// isElsewhere reports whether a Brain at an address is known to be on another machine than this
// one.
func isElsewhere(ctx context.Context, brain, machine, own string) bool {
	if machine != "" && machine != own {
		return true
	}
	// Containers may share the machine's id and still have networks of their own.
	ctx, cancel := context.WithTimeout(ctx, resolveTimeout)
	defer cancel()
	addresses, err := net.DefaultResolver.LookupNetIP(ctx, "ip", listen.HostOf(brain))
	if err != nil {
		return false
	}
	mine, err := net.InterfaceAddrs()
	if err != nil {
		return false
	}
	for _, address := range addresses {
		address = address.Unmap()
		if address.IsLoopback() || address.IsUnspecified() {
			return false
		}
		for _, own := range mine {
			if prefix, err := netip.ParsePrefix(own.String()); err == nil && prefix.Addr().Unmap() == address {
				return false
			}
		}
	}
	return len(addresses) > 0
}
