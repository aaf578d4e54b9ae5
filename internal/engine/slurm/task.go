package slurm

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/raylink/raylink/internal/backoff"
	"github.com/raylink/raylink/internal/engine"
	"github.com/raylink/raylink/internal/machine"
)

// Task is the task of an agent: it finds the head, and runs `raylink agent --attached` as the head
// says, until that stops it or is gone.
type Task struct {
	Env Env
	// Directory is that of the meeting, and Number that of the machine, from 0.
	Directory string
	Number    int
	// Raylink is the executable of the command line.
	Raylink string
	// Patience bounds how long the head may take to be there.
	Patience time.Duration
	// Output gets each line that the agent prints.
	Output func(line string)
}

// errHeadGone is the error of a task whose head has ended without stopping it.
var errHeadGone = errors.New("slurm: the head of the run is gone")

// Run returns nil if the head has stopped the task, however its run has ended.
//
// The end of ctx ends a task that has not found its head. After that the head, which gets the same
// signals from Slurm, stops the run in order: its agents must not go before its program.
func (t *Task) Run(ctx context.Context) error {
	conn, in, first, err := t.join(ctx)
	if err != nil {
		return err
	}
	defer conn.Close() //nolint:errcheck // nothing is lost
	home, err := engine.NewHome()
	if err != nil {
		return errors.Join(err, send(conn, message{Ended: err.Error()}))
	}
	defer func() { _ = home.Remove() }() // the next task tries again
	// The agent has ended before its files are removed.
	var agent *engine.Process
	defer func() {
		if agent != nil {
			agent.Signal(syscall.SIGKILL)
			<-agent.Done()
		}
	}()
	for msg := first; ; {
		switch {
		case msg.Stop:
			if agent != nil {
				agent.Stop(context.WithoutCancel(ctx))
			}
			return nil
		case msg.Start != nil:
			if agent, err = t.start(msg.Start, home); err != nil {
				err = send(conn, message{Ended: err.Error()})
			} else {
				go reportEnd(agent, conn)
			}
		}
		if err == nil {
			msg, err = receive(in)
		}
		if err != nil {
			return fmt.Errorf("%w: %w", errHeadGone, err)
		}
	}
}

// reportEnd reports to the head how an agent has ended. A head that has stopped it does not listen.
func reportEnd(agent *engine.Process, conn net.Conn) {
	<-agent.Done()
	_ = send(conn, message{Ended: agent.Ended()}) // a lost connection is noticed by its reader
}

// join finds the head, and returns its first message. A file of an earlier use leads to no head
// that knows its secret, or to none at all: the task tries again until the right one is there.
func (t *Task) join(ctx context.Context) (net.Conn, *bufio.Reader, message, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, t.Patience,
		fmt.Errorf("slurm: no head has been found by %s within %v", filepath.Join(t.Directory, placeFile), t.Patience))
	defer cancel()
	var last error
	for retry := (backoff.Backoff{First: 50 * time.Millisecond, Max: 2 * time.Second}); ; {
		p, err := readPlace(t.Directory)
		if err == nil {
			var conn net.Conn
			if conn, err = p.dial(ctx); err == nil {
				in := bufio.NewReaderSize(conn, maxMessage)
				var first message
				unblock := context.AfterFunc(ctx, func() { _ = conn.Close() })
				if err = send(conn, message{Secret: p.Secret, Number: t.Number, Node: t.Env.NodeName()}); err == nil {
					first, err = receive(in)
				}
				if unblock() && err == nil {
					return conn, in, first, nil
				}
				_ = conn.Close() // of a head that is not the one
			}
		}
		if err != nil {
			last = err
		}
		if waited := retry.Wait(ctx); waited != nil {
			return nil, nil, message{}, errors.Join(context.Cause(ctx), last)
		}
	}
}

// readPlace reads the file, which must be this user's, and not readable by others.
func readPlace(directory string) (place, error) {
	// A client of a network's file system may remember for long that a file was not there. Reading
	// the directories asks its server again.
	for _, d := range []string{filepath.Dir(directory), directory} {
		if f, err := os.Open(d); err == nil {
			_, _ = f.Readdirnames(1) // only the question matters
			_ = f.Close()
		}
	}
	var p place
	info, err := os.Lstat(directory)
	if err != nil {
		return p, err
	}
	if owner, ok := info.Sys().(*syscall.Stat_t); !info.IsDir() || info.Mode().Perm()&0o077 != 0 || !ok || int(owner.Uid) != os.Getuid() {
		return p, fmt.Errorf("slurm: %s does not belong to this user alone", directory)
	}
	text, err := os.ReadFile(filepath.Join(directory, placeFile))
	if err != nil {
		return p, err
	}
	return p, json.Unmarshal(text, &p)
}

// dial connects to the head that has written the file.
func (p place) dial(ctx context.Context) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, helloTime)
	defer cancel()
	dialer := &tls.Dialer{
		NetDialer: &net.Dialer{KeepAliveConfig: keepAlive()},
		Config: &tls.Config{
			MinVersion:         tls.VersionTLS13,
			InsecureSkipVerify: true, //nolint:gosec // the certificate itself is compared
			VerifyConnection: func(state tls.ConnectionState) error {
				if len(state.PeerCertificates) != 1 || fingerprint(state.PeerCertificates[0].Raw) != p.Fingerprint {
					return errors.New("slurm: the process at " + p.Address + " is not the head of this run")
				}
				return nil
			},
		},
	}
	return dialer.DialContext(ctx, "tcp", p.Address)
}

// start starts an agent.
func (t *Task) start(s *agentStart, home *engine.Home) (*engine.Process, error) {
	replaced, err := machine.ParseResources(s.Resources)
	if err != nil {
		return nil, err
	}
	resources := t.Env.Resources()
	maps.Copy(resources, replaced)
	agent := &engine.Agent{
		Raylink: t.Raylink, Brain: s.Brain, Token: s.Token, Name: s.Name, Flags: append(s.Flags, engine.ResourceFlags(resources)...),
		Identity: t.Env.Identity(true), Directory: home.Path, Output: t.Output,
	}
	return agent.Start()
}
