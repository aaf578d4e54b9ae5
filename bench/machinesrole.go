package main

import (
	"bufio"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/raylink/raylink"
	benchv1 "github.com/raylink/raylink/bench/gen/bench/v1"
	"github.com/raylink/raylink/bench/gen/bench/v1/benchv1raylink"
	machinev1 "github.com/raylink/raylink/gen/raylink/machine/v1"
	"github.com/raylink/raylink/internal/assemble"
	"github.com/raylink/raylink/runtime"
)

// Roles of the processes in rows about machines. An agent is followed by its number, a creator by
// the number of agents, and a receiver by the directory of the programs that it is to run, if it
// is.
const (
	machineAgentRole   = "machines-agent"
	machineCreatorRole = "machines-creator"
	receiverRole       = "machines-receiver"
	answererRole       = "machines-answerer" // of a program that a receiver runs
)

// agentLabel is a label of the machines of agents.
const agentLabel = "bench"

// machinesRole runs a process that takes part in rows about machines.
func (c *driverConn) machinesRole(ctx context.Context, cancel context.CancelFunc, words []string) error {
	switch words[0] {
	case machineAgentRole:
		go func() {
			// As the process of Brain.
			_ = c.serve(func(r request) (response, error) {
				return response{}, fmt.Errorf("an agent does not support %q", r.Op)
			})
			cancel()
		}()
		// Not in a goroutine: the call does not return in a process that was launched for a node.
		ready := func(string, *machinev1.Machine) {
			if err := c.out.Encode(response{}); err != nil {
				cancel() // the driver is gone
			}
		}
		described := runtime.MachineOptions{Labels: runtime.Labels{agentLabel: "agent"}}
		return assemble.Agent(ctx, ready, runtime.WithMachine(described), benchv1raylink.EchoType(newEchoNode))
	case receiverRole:
		return c.receive(ctx, words[1:])
	case answererRole:
		_, err := os.Stdout.Write([]byte{1})
		return err
	case swarmRole:
		return c.swarm(ctx)
	}
	rt, err := raylink.Init(ctx, benchv1raylink.EchoType(newEchoNode))
	if err != nil {
		return c.reportError(err)
	}
	agents, err := strconv.Atoi(words[1])
	if err == nil {
		err = awaitAgents(ctx, rt, agents)
	}
	if err != nil {
		return errors.Join(c.reportError(err), rt.Close())
	}
	return errors.Join(c.answer(response{}, func(r request) (response, error) {
		ctx, cancel := context.WithTimeout(ctx, setUpDeadline)
		defer cancel()
		switch r.Op {
		case "prepare":
			r.Job.Duration = 0
			_, err := create(ctx, rt, r.Job)
			return response{}, err
		case "run":
			o, err := create(ctx, rt, r.Job)
			return response{Outcome: o}, err
		}
		return response{}, fmt.Errorf("a creator does not support %q", r.Op)
	}), rt.Close())
}

// awaitAgents waits until so many agents have joined.
func awaitAgents(ctx context.Context, rt *raylink.Runtime, agents int) error {
	ctx, cancel := context.WithTimeout(ctx, setUpDeadline)
	defer cancel()
	for {
		children, err := rt.Children(ctx)
		if err != nil {
			return err
		}
		joined := 0
		for _, node := range children {
			if strings.HasPrefix(node.GetPath(), "machine-") {
				joined++
			}
		}
		if joined >= agents {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for %d agents: %d have joined: %w", agents, joined, ctx.Err())
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// create creates gangs of nodes one after the other until the time is up, once at least: each until
// all nodes have answered a call. A gang is stopped before the next one is created.
func create(ctx context.Context, rt *raylink.Runtime, j job) (outcome, error) {
	options := []runtime.CreateOption{runtime.OwnProcess()}
	switch j.Kind { //nolint:exhaustive // the others are local
	case machineCreate, machineProgram:
		options = append(options, runtime.On(agentMachine(0)))
	case machineGang:
		options = []runtime.CreateOption{
			runtime.AgentProcess(), runtime.Requires(runtime.Resources{}, runtime.Labels{agentLabel: "agent"}), runtime.Spread(),
		}
	}
	n := max(1, j.Inflight)
	h := new(histogram)
	var took time.Duration
	for begun := time.Now(); ; {
		since := time.Now()
		made, err := benchv1raylink.CreateEchoN(ctx, rt, n, options...)
		if err != nil {
			return outcome{}, err
		}
		var all errgroup.Group
		for _, echo := range made {
			all.Go(func() error {
				_, err := echo.Echo(ctx, &benchv1.EchoRequest{})
				return err
			})
		}
		if err := all.Wait(); err != nil {
			return outcome{}, err
		}
		one := time.Since(since)
		took += one
		h.record(int64(one))
		for _, echo := range made {
			all.Go(func() error { return echo.Ref().Stop(ctx) })
		}
		if err := all.Wait(); err != nil {
			return outcome{}, err
		}
		if time.Since(begun) >= j.Duration || j.Kind == machineProgram {
			return outcomeOf(h, took), nil
		}
	}
}

// receive receives programs, each over a TLS connection, and answers each with a byte: when it has
// arrived or, given a directory, when it has answered.
func (c *driverConn) receive(ctx context.Context, directory []string) error {
	config, der, err := selfSigned()
	if err != nil {
		return c.reportError(err)
	}
	l, err := listen(ctx, "tcp")
	if err != nil {
		return c.reportError(err)
	}
	secured := tls.NewListener(l, config)
	go func() {
		for {
			nc, err := secured.Accept()
			if err != nil {
				return
			}
			if len(directory) == 0 {
				_, err = io.Copy(io.Discard, nc)
			} else {
				err = runReceived(ctx, nc, filepath.Join(directory[0], "received"))
			}
			if err == nil {
				_, _ = nc.Write([]byte{1}) // the sender notices what is missing
			}
			_ = nc.Close()
		}
	}()
	ready := response{Address: securedAddress(l.Addr().String(), der)}
	return errors.Join(c.answer(ready, func(r request) (response, error) {
		return response{}, fmt.Errorf("a receiver does not support %q", r.Op)
	}), secured.Close())
}

// runReceived writes a program to a file while it hashes it, as two goroutines do, and runs it.
func runReceived(ctx context.Context, from io.Reader, path string) error {
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o700) //nolint:gosec // it is to be run
	if err != nil {
		return err
	}
	defer os.Remove(path) //nolint:errcheck // the next one replaces it
	unhashed, hashed := make(chan []byte), make(chan struct{})
	defer close(unhashed)
	go func() {
		sum := sha256.New()
		for p := range unhashed {
			sum.Write(p)
			hashed <- struct{}{}
		}
	}()
	buf := make([]byte, 256<<10)
	for {
		n, err := from.Read(buf)
		unhashed <- buf[:n]
		_, failed := file.Write(buf[:n])
		<-hashed
		if failed != nil {
			return errors.Join(failed, file.Close())
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return errors.Join(err, file.Close())
		}
	}
	if err := file.Close(); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, path) //nolint:gosec // this benchmark, as its driver has sent it
	cmd.Env = append(os.Environ(), roleEnv+"="+answererRole)
	return cmd.Run()
}

// sendOnePass sends a file to a receiver, and returns how long it took from the file's opening to
// the answer.
func sendOnePass(ctx context.Context, path, receiver string) (time.Duration, error) {
	address, config, err := trusting(receiver)
	if err != nil {
		return 0, err
	}
	begun := time.Now()
	file, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer file.Close() //nolint:errcheck // only read
	dialer := &tls.Dialer{Config: config}
	nc, err := dialer.DialContext(ctx, "tcp", address)
	if err != nil {
		return 0, err
	}
	defer nc.Close() //nolint:errcheck // the answer has arrived, or there is another error
	if _, err := io.Copy(nc, bufio.NewReaderSize(file, 256<<10)); err != nil {
		return 0, err
	}
	if secured, ok := nc.(*tls.Conn); ok {
		err = secured.CloseWrite()
	}
	if err == nil {
		_, err = io.ReadFull(nc, make([]byte, 1))
	}
	return time.Since(begun), err
}
