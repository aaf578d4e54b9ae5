package parametertest

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect/v2"
	"go.uber.org/goleak"

	psv1 "github.com/raylink/raylink/gen/raylink/ps/v1"
	"github.com/raylink/raylink/gen/raylink/ps/v1/psv1raylink"
	"github.com/raylink/raylink/internal/proctest"
	"github.com/raylink/raylink/join"
	"github.com/raylink/raylink/runtime"
	"github.com/raylink/raylink/services/ps"
)

const (
	captainPath = "ps-0"
)

// machine is a process that executes orders.
type machine struct {
	rt *join.Runtime

	// out guards the standard output.
	out sync.Mutex

	// mu guards the fields below.
	mu       sync.Mutex
	clients  map[string]*ps.Client
	captains map[string]*psv1raylink.Captain
	held     map[string]*ps.Parameters

	// stop ends the pushers and readers.
	stop func()
	ctx  context.Context //nolint:containedctx // the pushers' and readers'
	run  sync.WaitGroup
}

// serveMachine is the main function of a machine's process, and of those of its nodes. It ends with
// its input.
func serveMachine() error {
	rt, err := join.Init(context.Background())
	if err != nil {
		return err
	}
	m := &machine{
		rt: rt, clients: make(map[string]*ps.Client), captains: make(map[string]*psv1raylink.Captain),
		held: make(map[string]*ps.Parameters),
	}
	m.quiet()
	m.tell(answer{Event: proctest.Serving, PID: os.Getpid()})
	var orders sync.WaitGroup
	err = proctest.Lines(os.Stdin, func(o order) {
		orders.Go(func() { m.execute(o) })
	})
	// The test may have died while an order is executed.
	time.AfterFunc(proctest.Patience, func() { os.Exit(2) })
	m.quiet()
	m.stop()
	orders.Wait()
	for _, p := range m.held {
		err = errors.Join(err, p.Release())
	}
	for _, c := range m.clients {
		err = errors.Join(err, c.Close())
	}
	if err = errors.Join(err, rt.Close()); err != nil {
		return err
	}
	mapped, _ := mappedBytes()
	if mapped != 0 {
		return fmt.Errorf("%d bytes of parameters are still mapped", mapped)
	}
	return goleak.Find()
}

// quiet ends the pushers and readers, and waits for their end.
func (m *machine) quiet() {
	m.mu.Lock()
	stop := m.stop
	m.ctx, m.stop = context.WithCancel(context.Background())
	m.mu.Unlock()
	if stop != nil {
		stop()
	}
	m.run.Wait()
}

// start runs a pusher or a reader.
func (m *machine) start(task func(ctx context.Context)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	ctx := m.ctx
	m.run.Go(func() { task(ctx) })
}

// tell writes a line.
func (m *machine) tell(a answer) {
	m.out.Lock()
	defer m.out.Unlock()
	_ = json.NewEncoder(os.Stdout).Encode(a) // if it fails, the test is dead
}

func fail(a answer, err error) answer {
	if err != nil {
		a.Error, a.Code = err.Error(), connect.CodeOf(err).String()
	}
	return a
}

func (m *machine) execute(o order) {
	begin := time.Now()
	limit := cmp.Or(time.Duration(o.Milliseconds)*time.Millisecond, proctest.Patience)
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	a, err := m.try(ctx, o)
	a.ID = o.ID
	if a.Milliseconds == 0 {
		a.Milliseconds = time.Since(begin).Milliseconds()
	}
	m.tell(fail(a, err))
}

// try executes an order that needs no client.
func (m *machine) try(ctx context.Context, o order) (a answer, err error) {
	switch o.Do {
	case "create":
		captain, err := psv1raylink.CreateCaptain(ctx, m.rt, &psv1.CaptainConfig{})
		if err != nil {
			return a, err
		}
		a.Path = captain.Ref().Path()
		return a, nil
	case "stop":
		m.quiet()
		return a, nil
	case "check", "release":
		m.mu.Lock()
		p := m.held[o.Hold]
		m.mu.Unlock()
		if p == nil {
			return a, fmt.Errorf("nothing is held as %q", o.Hold)
		}
		a.Version = p.Version().GetId()
		if a.Token, err = verifyVersion(p.Version().GetTag(), p); err == nil && o.Do == "release" {
			m.mu.Lock()
			delete(m.held, o.Hold)
			m.mu.Unlock()
			err = p.Release()
		}
		return a, err
	case "usage":
		if a.Received, err = received(); err != nil {
			return a, err
		}
		a.Mapped, err = mappedBytes()
		return a, err
	}
	path := cmp.Or(o.Captain, captainPath)
	c, err := m.client(ctx, path)
	if err != nil {
		return a, err
	}
	return m.tryClient(ctx, c, o)
}

// client returns the process's client of a captain.
func (m *machine) client(ctx context.Context, path string) (*ps.Client, error) {
	m.mu.Lock()
	c := m.clients[path]
	m.mu.Unlock()
	if c != nil {
		return c, nil
	}
	captain, err := psv1raylink.FindCaptain(ctx, m.rt, runtime.Path(path))
	if err != nil {
		return nil, err
	}
	if c, err = openClient(ctx, captain); err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if other := m.clients[path]; other != nil { // another order was faster
		return other, c.Close()
	}
	m.clients[path] = c
	return c, nil
}

func (m *machine) tryClient(ctx context.Context, c *ps.Client, o order) (a answer, err error) {
	switch o.Do {
	case "open":
	case "captain":
		info, err := c.Captain().Ref().Info(ctx)
		if err != nil {
			return a, err
		}
		a.PID = int(info.GetRecord().GetHost().GetPid())
	case "end":
		err = c.Captain().Ref().Stop(ctx)
	case "officer":
		a.PID, err = officerPID(ctx, c, os.Getenv("RAYLINK_MACHINE"))
	case "officers":
		a.Machines, err = machinesOf(ctx, c)
	case "id":
		a.Version, err = c.ID(ctx, o.Tag)
	case "meta":
		v, err := meta(ctx, c, o.Tag)
		a.Version = v.GetId()
		return a, err
	case "push":
		v, err := push(ctx, c, o.Tag, content(o.Tag, o.Token, o.Size), o.Wait)
		a.Version, a.Machines = v.GetId(), lackedBy(err)
		return a, err
	case "pull":
		p, err := c.Pull(ctx, o.Tag)
		if err != nil {
			return a, err
		}
		return m.pulled(p, o)
	case "pull if newer":
		p, newer, err := pullIfNewer(ctx, c, o.Tag, o.Have)
		if a.Newer = newer; err != nil || !newer {
			return a, err
		}
		return m.pulled(p, o)
	case "follow":
		return a, m.follow(c, o.Tag)
	case "read":
		m.start(func(ctx context.Context) { m.read(ctx, c, o.Tag) })
	case "churn":
		m.start(func(ctx context.Context) { m.churn(ctx, c, o) })
	default:
		err = fmt.Errorf("unknown order %q", o.Do)
	}
	return a, err
}

// pulled verifies parameters, and releases or holds them.
func (m *machine) pulled(p *ps.Parameters, o order) (a answer, err error) {
	a.Version, a.Newer = p.Version().GetId(), true
	if a.Token, err = verifyVersion(o.Tag, p); err != nil || o.Hold == "" {
		return a, errors.Join(err, p.Release())
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.held[o.Hold] = p
	return a, nil
}

// churn pushes to a tag, one version after the other. A push waits for the captain.
func (m *machine) churn(ctx context.Context, c *ps.Client, o order) {
	for i := 0; ctx.Err() == nil; i++ {
		token := o.Token<<32 | uint64(i)
		begin := time.Now()
		pushing, cancel := context.WithTimeout(ctx, proctest.Patience)
		v, err := push(pushing, c, o.Tag, content(o.Tag, token, o.Sizes[i%len(o.Sizes)]), o.Wait)
		cancel()
		a := answer{Event: pushedEvent, Tag: o.Tag, Token: token, Version: v.GetId(), Milliseconds: time.Since(begin).Milliseconds()}
		if err != nil {
			if ctx.Err() != nil { // the test has ended it
				return
			}
			a.Event = failedEvent
		}
		m.tell(fail(a, err))
		if err != nil {
			select {
			case <-ctx.Done():
			case <-time.After(10 * time.Millisecond): // today's pushes fail at once
			}
		}
	}
}

// readPause is the pause of a reader that polls.
const readPause = time.Millisecond

// read polls for the versions of a tag, and verifies each.
func (m *machine) read(ctx context.Context, c *ps.Client, tag string) {
	var last, seen uint64
	trouble := ""
	troubled := func(what string, err error) {
		if text := what + ": " + err.Error(); text != trouble && ctx.Err() == nil {
			trouble = text
			m.tell(fail(answer{Event: troubleEvent, Tag: tag}, fmt.Errorf("%s: %w", what, err)))
		}
	}
	for ; ctx.Err() == nil; proctest.Pause(readPause) {
		id, err := c.ID(ctx, tag)
		if err != nil {
			troubled("ID", err)
			continue
		}
		if id < seen {
			m.tell(answer{Event: faultEvent, Tag: tag, Error: fmt.Sprintf("ID of %q went from %d back to %d", tag, seen, id)})
		}
		seen = max(seen, id)
		if id == last {
			continue
		}
		p, err := c.Pull(ctx, tag)
		if err != nil {
			troubled("Pull", err)
			continue
		}
		got := p.Version().GetId()
		if got < seen {
			m.tell(answer{Event: faultEvent, Tag: tag, Error: fmt.Sprintf("Pull of %q returned version %d after %d was seen", tag, got, seen)})
		}
		m.see(tag, p)
		seen, last = max(seen, got), got
	}
}

// see verifies a version, reports it and releases it.
func (m *machine) see(tag string, p *ps.Parameters) {
	token, err := verifyVersion(tag, p)
	a := answer{Event: sawEvent, Tag: tag, Version: p.Version().GetId(), Token: token}
	if err != nil {
		a.Event = faultEvent
	}
	m.tell(fail(a, err))
	if err := p.Release(); err != nil {
		m.tell(fail(answer{Event: faultEvent, Tag: tag}, fmt.Errorf("release: %w", err)))
	}
}

// follow follows a tag by a Follower.
func (m *machine) follow(c *ps.Client, tag string) error {
	f, err := follow(c, tag)
	if err != nil {
		return err
	}
	m.start(func(ctx context.Context) {
		var seen uint64
		trouble := ""
		for ctx.Err() == nil {
			select {
			case <-f.Changed():
			case <-time.After(20 * time.Millisecond):
			case <-ctx.Done():
			}
			if err := f.Err(); err != nil && err.Error() != trouble {
				trouble = err.Error()
				m.tell(fail(answer{Event: troubleEvent, Tag: tag}, fmt.Errorf("follow: %w", err)))
			}
			p := f.Current()
			if p == nil {
				continue
			}
			id := p.Version().GetId()
			switch {
			case id < seen:
				m.tell(answer{Event: faultEvent, Tag: tag, Error: fmt.Sprintf("Current of %q went from %d back to %d", tag, seen, id)})
				_ = p.Release()
			case id == seen:
				_ = p.Release()
			default:
				m.see(tag, p)
				seen = id
			}
			lag, age := f.Staleness()
			m.tell(answer{Event: "staleness", Tag: tag, Version: id, Lag: lag, Milliseconds: age.Milliseconds()})
		}
		if err := f.Close(); err != nil {
			m.tell(fail(answer{Event: faultEvent, Tag: tag}, fmt.Errorf("close the follower: %w", err)))
		}
	})
	return nil
}

// received returns how many bytes the process has read, from sockets too.
func received() (int64, error) {
	text, err := os.ReadFile("/proc/self/io")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if count, ok := strings.CutPrefix(line, "rchar: "); ok {
			return strconv.ParseInt(strings.TrimSpace(count), 10, 64)
		}
	}
	return 0, errors.New("/proc/self/io has no rchar")
}

// mappedBytes returns the size of the mappings of files of parameters.
func mappedBytes() (int64, error) {
	text, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		return 0, err
	}
	var total int64
	for line := range bytes.Lines(text) {
		var from, to int64
		if !bytes.Contains(line, []byte(".params")) && !bytes.Contains(line, []byte(".draft")) {
			continue
		}
		if _, err := fmt.Sscanf(string(line), "%x-%x", &from, &to); err != nil {
			return 0, fmt.Errorf("/proc/self/maps: %q: %w", line, err)
		}
		total += to - from
	}
	return total, nil
}
