package main

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"time"

	brainv1 "github.com/raylink/raylink/gen/raylink/brain/v1"
	"github.com/raylink/raylink/internal/backoff"
	"github.com/raylink/raylink/internal/nodeurl"
	"github.com/raylink/raylink/runtime"
)

// awaitMachines waits until agents of so many machines have joined, and for a Brain that is not
// there yet.
func (a *app) awaitMachines(ctx context.Context, count int, timeout time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	joined := 0
	for retry := (backoff.Backoff{First: 50 * time.Millisecond, Max: time.Second}); ; {
		agents, err := a.agents(ctx)
		if err == nil {
			joined = agents
		}
		if err == nil && joined >= count {
			return nil
		}
		if retry.Wait(ctx) != nil {
			if err == nil {
				err = ctx.Err()
			}
			return &localError{fmt.Errorf("waiting for %d machines: %d have joined within %v: %w", count, joined, timeout, err)}
		}
	}
}

// agents returns how many machines have an agent.
func (a *app) agents(ctx context.Context) (int, error) {
	s, err := a.connect(ctx)
	if err != nil {
		return 0, err
	}
	defer s.close()
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	res, err := s.brain.ListMachines(ctx, &brainv1.ListMachinesRequest{})
	agents := 0
	for _, use := range res.GetMachines() {
		if use.GetMachine().GetAgent() {
			agents++
		}
	}
	return agents, err
}

// whileBrainIsThere returns a context that ends when Brain can't be reached for the given time
// after the first call of joined; 0 is for ever. An agent whose engine can't stop it ends by that.
func whileBrainIsThere(
	ctx context.Context, address, token string, patience time.Duration,
) (watched context.Context, joined, stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	if patience <= 0 {
		return ctx, func() {}, cancel
	}
	first, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		defer cancel()
		select {
		case <-first:
			awaitLoss(ctx, address, token, patience)
		case <-ctx.Done():
		}
	}()
	return ctx, sync.OnceFunc(func() { close(first) }), func() {
		cancel()
		<-done
	}
}

// awaitLoss returns when Brain can't be reached for the given time, or ctx ends.
func awaitLoss(ctx context.Context, address, token string, patience time.Duration) {
	client := &http.Client{Transport: runtime.NewHTTPTransport(token, nil), Timeout: answerTimeout}
	defer client.CloseIdleConnections()
	isThere := func() bool {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, nodeurl.Route{}.URL(address).String()+"/livez", http.NoBody)
		if err != nil {
			return false
		}
		res, err := client.Do(req)
		return err == nil && res.Body.Close() == nil && res.StatusCode == http.StatusOK
	}
	tick := time.NewTicker(min(patience/4, answerTimeout))
	defer tick.Stop()
	for last := time.Now(); time.Since(last) < patience; {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		if isThere() {
			last = time.Now()
		}
	}
}
