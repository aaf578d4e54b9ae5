package parametertest

import (
	"context"
	"errors"

	psv1 "github.com/raylink/raylink/gen/raylink/ps/v1"
	"github.com/raylink/raylink/gen/raylink/ps/v1/psv1raylink"
	"github.com/raylink/raylink/services/ps"
)

// This file has what depends on the client's interface.

// levels are what an order's Wait means.
var levels = map[string]psv1.WaitFor{"": ps.Home, "quorum": ps.Quorum, "all": ps.All}

func openClient(ctx context.Context, captain *psv1raylink.Captain) (*ps.Client, error) {
	return ps.Open(ctx, captain)
}

func push(ctx context.Context, c *ps.Client, tag string, b []byte, wait string) (*psv1.Version, error) {
	return c.Push(ctx, tag, b, ps.WaitFor(levels[wait]))
}

func pullIfNewer(ctx context.Context, c *ps.Client, tag string, have uint64) (*ps.Parameters, bool, error) {
	return c.PullIfNewer(ctx, tag, have)
}

func meta(ctx context.Context, c *ps.Client, tag string) (*psv1.Version, error) {
	return c.Meta(ctx, tag)
}

// machinesOf returns the machines of the captain's officers.
func machinesOf(ctx context.Context, c *ps.Client) ([]string, error) {
	officers, err := c.Officers(ctx)
	machines := make([]string, len(officers))
	for i, o := range officers {
		machines[i] = o.GetMachine()
	}
	return machines, err
}

// officerPID returns the process that hosts a machine's officer; 0 if there is none.
func officerPID(ctx context.Context, c *ps.Client, machine string) (int, error) {
	res, err := c.Captain().Locate(ctx, &psv1.LocateRequest{Machine: machine})
	return int(res.GetOfficer().GetHost().GetPid()), err
}

// lackedBy returns the machines that lack a version when the wait of its push ends.
func lackedBy(err error) []string {
	var lacking *ps.LackingError
	if !errors.As(err, &lacking) {
		return nil
	}
	return lacking.Machines
}

func follow(c *ps.Client, tag string) (*ps.Follower, error) { return c.Follow(tag), nil }
