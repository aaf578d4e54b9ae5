package slurm

import (
	"context"
	"fmt"
	"net"
	"os"
	"strings"
)

// Host returns the address at which the nodes of the job reach this one: the one from which this
// one reaches them, by the addresses that Slurm itself uses.
func (e Env) Host(ctx context.Context) (string, error) {
	list := e.nodes(-1)
	if e.get("SLURM_HET_SIZE") != "" {
		// The first node of the second component is not this one.
		list = e.nodes(1)
	}
	if step := e.get("SLURM_STEP_NODELIST"); step != "" && e.Find() == InStep {
		list = step
	}
	names, err := command(ctx, "scontrol", "show", "hostnames", list)
	if err != nil {
		return "", err
	}
	for node := range strings.FieldsSeq(names) {
		if node == e.NodeName() {
			continue
		}
		shown, err := command(ctx, "scontrol", "--oneliner", "show", "node", node)
		if err != nil {
			return "", err
		}
		return routeTo(ctx, node, field(shown, "NodeAddr"))
	}
	return "127.0.0.1", nil // the job has this node alone
}

// field returns the value of a key in a line of scontrol.
func field(line, key string) string {
	for entry := range strings.FieldsSeq(line) {
		if value, ok := strings.CutPrefix(entry, key+"="); ok {
			return value
		}
	}
	return ""
}

// routeTo returns the address of this machine from which packets go to another.
func routeTo(ctx context.Context, node, address string) (string, error) {
	if address == "" {
		address = node
	}
	// A connection of UDP sends nothing by itself; any port will do.
	conn, err := new(net.Dialer).DialContext(ctx, "udp", net.JoinHostPort(address, "9"))
	if err != nil {
		return "", fmt.Errorf("slurm: finding the address at which the node %s reaches this one: %w; --listen ADDRESS:0 says it", node, err)
	}
	defer conn.Close() //nolint:errcheck // nothing was sent
	host, _, err := net.SplitHostPort(conn.LocalAddr().String())
	return host, err
}

// FromOS is the environment of this process.
func FromOS() Env { return os.LookupEnv }
