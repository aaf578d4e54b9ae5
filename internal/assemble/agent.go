package assemble

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"connectrpc.com/connect/v2"

	agentv1 "github.com/raylink/raylink/gen/raylink/agent/v1"
	"github.com/raylink/raylink/gen/raylink/agent/v1/agentv1raylink"
	machinev1 "github.com/raylink/raylink/gen/raylink/machine/v1"
	"github.com/raylink/raylink/internal/backoff"
	"github.com/raylink/raylink/runtime"
)

// Agent makes this machine available to a system until ctx ends, or the agent's node is stopped; in
// both cases the nodes on the machine are stopped first. It waits for Brain, and joins again if
// Brain has declared the machine dead meanwhile. ready is called each time that it has joined; nil
// for none. If the process was launched as the host of a node, Agent serves the node and never
// returns.
func Agent(ctx context.Context, ready func(node string, machine *machinev1.Machine), opts ...runtime.Option) error {
	if err := serveLaunched(withSystemTypes(hosts.NewOptions(opts...))); err != nil {
		return err
	}
	for {
		again, err := serveAgent(ctx, ready, opts)
		if !again {
			return err
		}
	}
}

// serveAgent is an agent until its end, or until Brain has declared it dead: then it is to join
// again.
func serveAgent(ctx context.Context, ready func(node string, machine *machinev1.Machine), opts []runtime.Option) (again bool, err error) {
	node := &agentNode{stopped: make(chan struct{})}
	options := withSystemTypes(hosts.NewOptions(append(slices.Clip(opts), agentv1raylink.AgentType(node.setUp))...))
	rt, err := joinWhenThere(ctx, options)
	if err != nil {
		if ctx.Err() != nil {
			return false, nil
		}
		return false, err
	}
	defer func() { err = errors.Join(err, rt.Close()) }()
	node.host = rt.host
	made, err := agentv1raylink.CreateAgent(ctx, rt.host, runtime.Here())
	if err != nil && ctx.Err() != nil {
		return false, nil // it was ended before it had joined, which is no failure
	}
	if err != nil {
		return false, fmt.Errorf("creating the agent's node: %w", err)
	}
	if ready != nil {
		ready(made.Ref().Path(), hosts.Machine(rt.host))
	}
	select {
	case <-ctx.Done():
	case <-node.stopped:
	case <-hosts.DeclaredDead(rt.host):
		options.Logger.Warn("this machine was declared dead while Brain could not be reached: its nodes end, and it joins again")
		return true, nil
	}
	return false, nil
}

// joinWhenThere joins Brain, and waits for it as long as no process answers.
func joinWhenThere(ctx context.Context, options runtime.Options) (*Runtime, error) {
	retry := backoff.Backoff{First: 100 * time.Millisecond, Max: 2 * time.Second}
	for waits := false; ; {
		rt, err := startAs(ctx, nil, options, true)
		if err == nil || connect.CodeOf(err) != connect.CodeUnavailable {
			return rt, err
		}
		if !waits {
			waits = true
			options.Logger.Warn("the agent waits for Brain", slog.String("brain", options.Brain), slog.Any("error", err))
		}
		if retry.Wait(ctx) != nil {
			return nil, err
		}
	}
}

// agentNode is the node of an agent.
type agentNode struct {
	host    *runtime.Host
	stopped chan struct{} // closed when the node ends
}

func (a *agentNode) setUp(_ context.Context, node *runtime.Node) (agentv1raylink.AgentNode, error) {
	node.OnStop(func(ctx context.Context) error {
		defer close(a.stopped)
		return hosts.CloseMachine(ctx, a.host)
	})
	return a, nil
}

// Describe implements [agentv1raylink.AgentNode].
func (a *agentNode) Describe(context.Context, *agentv1.DescribeRequest) (*agentv1.DescribeResponse, error) {
	return &agentv1.DescribeResponse{Machine: hosts.Machine(a.host)}, nil
}
