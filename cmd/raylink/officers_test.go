package main

import (
	"bufio"
	"encoding/json"
	"io"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/raylink/raylink/internal/nettest"
	"github.com/raylink/raylink/internal/proctest"
)

// The captain of a Brain in a process of its own creates an officer where an agent has joined, and
// another one when it is restarted. The tree shows the machines.
func TestOfficerOnAnAgentsMachine(t *testing.T) {
	network := nettest.New(t, 2)
	head, other := network.Machines[0], network.Machines[1]
	at := head.IP.String() + ":6800"
	run := func(m *nettest.Machine, ready string, args ...string) {
		cmd := m.Command(filepath.Join(program, "raylink"), args...)
		cmd.Env = append(cmd.Env, "RAYLINK_TOKEN=a token of the tests of officers", "RAYLINK_INSECURE=1", "RAYLINK_LISTEN="+m.IP.String()+":0")
		serving := make(chan struct{})
		p := proctest.Start(t, cmd, func(_ *proctest.Process, out io.Reader) {
			lines := bufio.NewScanner(out)
			for lines.Scan() {
				if strings.Contains(lines.Text(), ready) {
					close(serving)
				}
			}
		})
		t.Cleanup(func() {
			require.NoError(t, syscall.Kill(p.PID(), syscall.SIGTERM))
			<-p.Ended()
		})
		<-serving
	}
	run(head, "Brain serves", "brain", "--listen", at)
	run(other, "has joined", "agent", "--brain", at)
	type node struct {
		Path string `json:"path"`
		Host struct {
			Machine string `json:"machine"`
			PID     int    `json:"pid"`
		} `json:"host"`
	}
	tree := func() (captain, officer node) {
		cmd := head.Command(filepath.Join(program, "raylink"), "tree", "--brain", at, "-o", "json")
		cmd.Env = append(cmd.Env, "RAYLINK_TOKEN=a token of the tests of officers")
		out, err := cmd.Output()
		require.NoError(t, err)
		var list struct {
			Nodes []node `json:"nodes"`
		}
		require.NoError(t, json.Unmarshal(out, &list))
		for _, n := range list.Nodes {
			switch {
			case n.Path == "ps-0":
				captain = n
			case strings.HasPrefix(n.Path, "ps-0/") && n.Host.Machine == other.Name:
				officer = n
			}
		}
		return captain, officer
	}
	var captain, officer node
	require.Eventually(t, func() bool {
		captain, officer = tree()
		return officer.Host.PID != 0
	}, patience, proctest.Poll)
	require.NoError(t, syscall.Kill(captain.Host.PID, syscall.SIGKILL))
	require.Eventually(t, func() bool {
		_, again := tree()
		return again.Host.PID != 0 && again.Path != officer.Path
	}, patience, proctest.Poll, "the captain's next incarnation has no officer there")
}
