package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/raylink/raylink"
	"github.com/raylink/raylink/gen/raylink/ps/v1/psv1raylink"
	"github.com/raylink/raylink/runtime"
	"github.com/raylink/raylink/services/ps"
)

// Words for RayLink's processes.
const (
	// ownCaptain stands for a captain that the pusher's process creates, instead of a path.
	ownCaptain = "create"
	// noOfficer makes a process that shares no officer's memory.
	noOfficer = "no-officer"
)

// raylinkParameters is a process with a client of the parameter server.
type raylinkParameters struct {
	rt      *raylink.Runtime
	captain *psv1raylink.Captain
	client  *ps.Client
}

// newRaylinkParameters opens a client. The words are a captain, and possibly noOfficer. The path
// is the captain's.
func newRaylinkParameters(ctx context.Context, words []string) (p *raylinkParameters, path string, err error) {
	rt, err := raylink.Init(ctx)
	if err != nil {
		return nil, "", err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, rt.Close())
		}
	}()
	var captain *psv1raylink.Captain
	if words[0] == ownCaptain {
		captain, err = psv1raylink.CreateCaptain(ctx, rt, nil, runtime.ParentProcess())
	} else {
		captain, err = psv1raylink.FindCaptain(ctx, rt, runtime.Path(words[0]))
	}
	if err != nil {
		return nil, "", err
	}
	var opts []ps.OpenOption
	if slices.Contains(words, noOfficer) {
		opts = append(opts, ps.WithoutOfficer())
	}
	client, err := ps.Open(ctx, captain, opts...)
	if err != nil {
		return nil, "", err
	}
	return &raylinkParameters{rt: rt, captain: captain, client: client}, captain.Ref().Path(), nil
}

func newRaylinkPusher(ctx context.Context, words []string) (pusher, string, error) {
	return newRaylinkParameters(ctx, words)
}

func newRaylinkReader(ctx context.Context, words []string) (reader, string, error) {
	return newRaylinkParameters(ctx, words)
}

// captainPID returns the id of the captain's process.
func (p *raylinkParameters) captainPID() (int, error) {
	ctx, cancel := context.WithTimeout(context.Background(), callDeadline)
	defer cancel()
	info, err := p.captain.Ref().Info(ctx)
	return int(info.GetRecord().GetHost().GetPid()), err
}

// awaitMachines waits until a number of machines besides the captain's have an officer.
func (p *raylinkParameters) awaitMachines(n int) error {
	ctx, cancel := context.WithTimeout(context.Background(), pushDeadline)
	defer cancel()
	for {
		officers, err := p.client.Officers(ctx)
		if err != nil {
			return err
		}
		if len(officers) > n {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("only %d machines have an officer: %w", len(officers), ctx.Err())
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func tagOf(size int) string { return fmt.Sprintf("policy/%d", size) }

func (p *raylinkParameters) push(ctx context.Context, parameters []byte, everywhere bool) error {
	level := ps.Home
	if everywhere {
		level = ps.All
	}
	_, err := p.client.Push(ctx, tagOf(len(parameters)), parameters, ps.WaitFor(level))
	return err
}

func (p *raylinkParameters) pull(ctx context.Context, size int) ([]byte, func() error, error) {
	parameters, err := p.client.Pull(ctx, tagOf(size))
	if err != nil {
		return nil, nil, err
	}
	return parameters.Bytes(), parameters.Release, nil
}

func (p *raylinkParameters) follow(ctx context.Context, size int, read func([]byte) error) (err error) {
	f := p.client.Follow(tagOf(size))
	defer func() { err = errors.Join(err, f.Close()) }()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-f.Changed():
		}
		if err := f.Err(); err != nil {
			return err
		}
		parameters := f.Current()
		if parameters == nil {
			continue
		}
		if err := errors.Join(read(parameters.Bytes()), parameters.Release()); err != nil {
			return err
		}
	}
}

func (p *raylinkParameters) close() error { return errors.Join(p.client.Close(), p.rt.Close()) }
