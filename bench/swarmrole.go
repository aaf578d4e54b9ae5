package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"connectrpc.com/connect/v2"
	"golang.org/x/sync/errgroup"

	brainv1 "github.com/raylink/raylink/gen/raylink/brain/v1"
	"github.com/raylink/raylink/gen/raylink/brain/v1/brainv1connect"
	machinev1 "github.com/raylink/raylink/gen/raylink/machine/v1"
	nodev1 "github.com/raylink/raylink/gen/raylink/node/v1"
	"github.com/raylink/raylink/internal/records"
	"github.com/raylink/raylink/runtime/tunnel"
)

// swarmRole is that of a process with simulated hosts.
const swarmRole = "machines-swarm"

// connecting bounds how many hosts connect at once.
const connecting = 128

// simulatedHost is a host that keeps a machine, and has nodes.
type simulatedHost struct {
	info  *nodev1.HostInfo
	conn  *tunnel.Conn
	brain brainv1connect.BrainServiceClient
	// lease is open as long as the host has its lease.
	lease brainv1connect.BrainServiceAttachClientStream
	nodes []simulatedNode
}

// simulatedNode is what a simulated host keeps of a node. With whole records, the collector of one
// process would have to visit what a thousand have.
type simulatedNode struct {
	nid, path   string
	incarnation uint64
}

// simulatedService is the service of the nodes.
const simulatedService = "bench.v1.Echo"

// swarm is the simulated hosts of a process.
type swarm struct{ hosts []*simulatedHost }

func (c *driverConn) swarm(ctx context.Context) error {
	s := new(swarm)
	defer s.disconnect()
	return c.answer(response{}, func(r request) (response, error) {
		var o outcome
		var err error
		switch r.Op {
		case opAttach:
			s.hosts = make([]*simulatedHost, max(1, r.Job.Size))
			for i := range s.hosts {
				s.hosts[i] = newSimulatedHost(i)
			}
			err = s.attach(ctx)
		case opReturn:
			s.disconnect()
			err = s.attach(ctx)
		case opRegister:
			o, err = s.register(ctx, r.Job.Inflight)
		case opRun:
			err = s.each(len(s.hosts), func(h *simulatedHost) error { return h.run(ctx) })
		case opLookup:
			o, err = s.lookUp(ctx, r.Job.Duration)
		default:
			err = fmt.Errorf("a simulated host does not support %q", r.Op)
		}
		return response{Outcome: o}, err
	})
}

func newSimulatedHost(i int) *simulatedHost {
	return &simulatedHost{info: &nodev1.HostInfo{
		Id: newID(), Address: fmt.Sprintf("10.%d.%d.1:7000", i>>8, i&0xff), Machine: fmt.Sprint("simulated-", i), Pid: int32(1000 + i), Build: "bench",
	}}
}

// newID returns a random UUID.
func newID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// each calls a function for each host, so many at once.
func (s *swarm) each(atOnce int, f func(*simulatedHost) error) error {
	var all errgroup.Group
	all.SetLimit(atOnce)
	for _, h := range s.hosts {
		all.Go(func() error { return f(h) })
	}
	return all.Wait()
}

func (s *swarm) attach(ctx context.Context) error {
	return s.each(connecting, func(h *simulatedHost) error { return h.attach(ctx) })
}

// disconnect closes all connections.
func (s *swarm) disconnect() {
	for _, h := range s.hosts {
		if h.conn != nil {
			_ = h.lease.Close() // Brain may have been killed
			_ = h.conn.Close()
			h.conn = nil
		}
	}
}

// attach connects the host to Brain, and waits for its lease. All nodes of the host must be known.
func (h *simulatedHost) attach(ctx context.Context) error {
	dialer := new(net.Dialer)
	nc, err := dialer.DialContext(ctx, "tcp", os.Getenv("RAYLINK_BRAIN"))
	if err != nil {
		return err
	}
	hctx, cancel := context.WithTimeout(ctx, setUpDeadline)
	defer cancel()
	h.conn, err = tunnel.Dial(hctx, nc, tunnel.Hello{Client: h.info.GetId(), Build: h.info.GetBuild()}, tunnel.Config{Token: os.Getenv("RAYLINK_TOKEN")})
	if err != nil {
		return err
	}
	h.brain = brainv1connect.NewBrainServiceClient(connect.NewClient(h.conn.Transport("", "")))
	if h.lease, err = h.brain.Attach(ctx); err != nil {
		return err
	}
	// Not an agent: the parameter server would have each one launch an officer.
	first := &brainv1.AttachRequest{Host: h.info, Machine: &machinev1.Machine{
		Id: h.info.GetMachine(), Name: h.info.GetMachine(), Platform: &machinev1.Platform{Os: "linux", Arch: "amd64"},
		Resources: map[string]int64{"cpu": 64_000, "memory": 256 << 30},
	}}
	for _, node := range h.nodes {
		first.Nodes = append(first.Nodes, &nodev1.NodeRef{
			Nid: node.nid, Path: node.path, Service: simulatedService, Incarnation: node.incarnation,
		})
	}
	if err := h.lease.Send(first); err != nil {
		return err
	}
	res, err := h.lease.Receive()
	if err == nil && len(res.GetUnknown()) > 0 {
		err = fmt.Errorf("%d of the nodes of a host are unknown", len(res.GetUnknown()))
	}
	if err != nil {
		return err
	}
	go h.renew(h.lease, res.GetLease().AsDuration())
	return nil
}

// renew renews a lease until its stream ends.
func (h *simulatedHost) renew(lease brainv1connect.BrainServiceAttachClientStream, duration time.Duration) {
	for tick := time.NewTicker(duration / 3); ; <-tick.C {
		if lease.Send(&brainv1.AttachRequest{}) != nil {
			return
		}
		if _, err := lease.Receive(); err != nil {
			return
		}
	}
}

// register has each host register its share of the nodes, one after the other: Brain decides where
// each runs.
func (s *swarm) register(ctx context.Context, nodes int) (outcome, error) {
	var mu sync.Mutex // guards h
	h := new(histogram)
	share := max(1, nodes/len(s.hosts))
	begun := time.Now()
	err := s.each(len(s.hosts), func(host *simulatedHost) error {
		for range share {
			since := time.Now()
			res, err := host.brain.Register(ctx, &brainv1.RegisterRequest{
				Type: "echo", Service: simulatedService, Count: 1, Launcher: host.info, RequestId: newID(),
				Place: &nodev1.Place{Resources: map[string]int64{"cpu": 500}},
			})
			if err != nil {
				return err
			}
			for _, node := range res.GetNodes() {
				host.nodes = append(host.nodes, simulatedNode{nid: node.GetNid(), path: node.GetPath(), incarnation: node.GetIncarnation()})
			}
			mu.Lock()
			h.record(int64(time.Since(since)))
			mu.Unlock()
		}
		return nil
	})
	return outcomeOf(h, time.Since(begun)), err
}

// run says that the host's nodes run on it.
func (h *simulatedHost) run(ctx context.Context) error {
	req := &brainv1.UpdateRequest{}
	for _, node := range h.nodes {
		req.Changes = append(req.Changes, &brainv1.Change{
			Nid: node.nid, Incarnation: node.incarnation, State: nodev1.NodeState_NODE_STATE_RUNNING, Host: h.info,
		})
	}
	res, err := h.brain.Update(ctx, req)
	if err == nil && len(res.GetNodes()) != len(h.nodes) {
		err = fmt.Errorf("%d nodes were updated, and not %d", len(res.GetNodes()), len(h.nodes))
	}
	return err
}

// lookUp has 256 callers look up nodes by path, over 16 connections.
func (s *swarm) lookUp(ctx context.Context, d time.Duration) (outcome, error) {
	const callers, connections = 256, 16
	all := make([]func() error, callers)
	for i := range all {
		from := s.hosts[i%min(connections, len(s.hosts))]
		next := i
		all[i] = func() error {
			of := s.hosts[next%len(s.hosts)]
			node := of.nodes[next/len(s.hosts)%len(of.nodes)]
			next += 7919
			req := &brainv1.LookupRequest{Where: &brainv1.Where{By: &brainv1.Where_Path{Path: node.path}}}
			res := new(brainv1.LookupResponse)
			// As hosts do it.
			request, err := records.AppendLookupRequest(nil, req)
			if err != nil {
				return err
			}
			err = from.conn.Invoke(ctx, brainv1connect.BrainServiceLookupProcedure, request, func(b []byte) error {
				return records.UnmarshalLookup(b, res)
			})
			if err == nil && res.GetNode().GetNid() != node.nid {
				err = fmt.Errorf("%s is another node", node.path)
			}
			return err
		}
	}
	return concurrently(all, d)
}
