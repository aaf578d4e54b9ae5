package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"

	"golang.org/x/time/rate"
)

// uplinks are machines whose sending sides are limited. Each machine advertises the address of a
// proxy in this process, so every connection between two machines passes the proxy of the one that
// was dialled. The proxy charges what comes from the dialler to the dialler's uplink, and what goes
// back to the uplink of its own machine. It finds the dialler by the process that has the socket.
type uplinks struct {
	bytesPerSecond int
	cancel         context.CancelFunc
	ctx            context.Context //nolint:containedctx // of the goroutines, until close
	running        sync.WaitGroup

	mu      sync.Mutex // guards the fields below, and the processes of uplinks
	all     []*uplink
	conns   map[net.Conn]bool
	refused error
}

// uplink is the sending side of a machine.
type uplink struct {
	// limiter is shared by all of the machine's connections.
	limiter  *rate.Limiter
	listener net.Listener
	// pid is the machine's process, whose descendants are on the same machine; 0 until it starts.
	pid int
}

const (
	// proxyBuffer is how much a proxy forwards at once; it is the limiters' burst, too.
	proxyBuffer = 32 << 10
	// socketBuffer bounds what waits in a proxy's socket, as the queue of a network card would.
	socketBuffer = 256 << 10
)

func newUplinks(ctx context.Context, bytesPerSecond int) *uplinks {
	u := &uplinks{bytesPerSecond: bytesPerSecond, conns: make(map[net.Conn]bool)}
	u.ctx, u.cancel = context.WithCancel(ctx)
	return u
}

// add adds a machine and starts its proxy. The machine must advertise the proxy's address.
func (u *uplinks) add() (*uplink, error) {
	listener, err := new(net.ListenConfig).Listen(u.ctx, "tcp4", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	up := &uplink{limiter: rate.NewLimiter(rate.Limit(u.bytesPerSecond), proxyBuffer), listener: listener}
	u.mu.Lock()
	u.all = append(u.all, up)
	u.mu.Unlock()
	u.running.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return // closed
			}
			u.running.Go(func() { u.proxy(up, conn) })
		}
	})
	return up, nil
}

func (up *uplink) address() string { return up.listener.Addr().String() }

// started sets the machine's process.
func (u *uplinks) started(up *uplink, pid int) {
	u.mu.Lock()
	up.pid = pid
	u.mu.Unlock()
}

// proxy forwards a connection to a machine, in both directions, until one side ends it.
func (u *uplinks) proxy(to *uplink, dialled net.Conn) {
	err := func() error {
		from, err := u.dialler(dialled)
		if err != nil || from == nil {
			return errors.Join(err, dialled.Close())
		}
		u.mu.Lock()
		pid := to.pid
		u.mu.Unlock()
		address, err := listenerOf(pid)
		if err != nil {
			return err
		}
		onward, err := new(net.Dialer).DialContext(u.ctx, "tcp4", address.String())
		if err != nil {
			return err
		}
		if !u.keep(dialled, onward) {
			return nil
		}
		var both sync.WaitGroup
		both.Go(func() { u.forward(from.limiter, onward, dialled) })
		both.Go(func() { u.forward(to.limiter, dialled, onward) })
		both.Wait()
		u.drop(dialled, onward)
		return nil
	}()
	if err != nil {
		u.mu.Lock()
		u.refused = errors.Join(u.refused, fmt.Errorf("connection from %s refused: %w", dialled.RemoteAddr(), err))
		u.mu.Unlock()
		_ = dialled.Close()
	}
}

// keep registers connections, which close closes. It reports false, and closes them, if that was
// called already.
func (u *uplinks) keep(conns ...net.Conn) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, conn := range conns {
		if u.conns == nil {
			_ = conn.Close()
			continue
		}
		_ = conn.(*net.TCPConn).SetReadBuffer(socketBuffer) //nolint:forcetypeassert // of TCP listeners and dialers
		u.conns[conn] = true
	}
	return u.conns != nil
}

func (u *uplinks) drop(conns ...net.Conn) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, conn := range conns {
		_ = conn.Close()
		delete(u.conns, conn)
	}
}

// forward copies from one connection to another within a limit. It ends both.
func (u *uplinks) forward(limiter *rate.Limiter, to, from net.Conn) {
	defer u.drop(to, from)
	buffer := make([]byte, proxyBuffer)
	for {
		n, err := from.Read(buffer)
		if n > 0 && (limiter.WaitN(u.ctx, n) != nil || !written(to, buffer[:n])) {
			return
		}
		if err != nil {
			return
		}
	}
}

func written(to net.Conn, data []byte) bool {
	_, err := to.Write(data)
	return err == nil
}

// dialler returns the machine at the other end of an accepted connection, or nil if it has ended.
func (u *uplinks) dialler(conn net.Conn) (*uplink, error) {
	remote, err := netip.ParseAddrPort(conn.RemoteAddr().String())
	if err != nil {
		return nil, err
	}
	local, err := netip.ParseAddrPort(conn.LocalAddr().String())
	if err != nil {
		return nil, err
	}
	sockets, err := tcpSockets()
	if err != nil {
		return nil, err
	}
	at := slices.IndexFunc(sockets, func(s tcpSocket) bool { return s.local == remote && s.remote == local })
	if at < 0 {
		return nil, nil //nolint:nilnil // documented
	}
	running, err := processes()
	if err != nil {
		return nil, err
	}
	u.mu.Lock()
	all := slices.Clone(u.all)
	u.mu.Unlock()
	for _, up := range all {
		u.mu.Lock()
		pid := up.pid
		u.mu.Unlock()
		if pid == 0 {
			continue
		}
		for _, pid := range family(running, pid) {
			if own, err := socketInodes(pid); err == nil && own[sockets[at].inode] {
				return up, nil
			}
		}
	}
	return nil, errors.New("it is from no process of the row's machines")
}

// close ends all connections and proxies. It returns why connections were refused.
func (u *uplinks) close() error {
	u.cancel()
	u.mu.Lock()
	for _, up := range u.all {
		_ = up.listener.Close()
	}
	for conn := range u.conns {
		_ = conn.Close()
	}
	u.conns = nil
	u.mu.Unlock()
	u.running.Wait()
	return u.refused
}
