package main

import (
	"net"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestFloorEchoes sends payloads of various sizes through all floors, concurrently where supported.
func TestFloorEchoes(t *testing.T) {
	for _, test := range []struct {
		system  string
		callers int
	}{{"floor", 1}, {"floor", 7}, {"floor-sync", 1}, {"floor-polling", 1}, {"floor-owned", 7}} {
		s, err := systemNamed(test.system)
		require.NoError(t, err)
		srv, err := s.serve(t.Context(), "tcp")
		require.NoError(t, err)
		c, err := s.dial(t.Context(), "tcp", srv.address())
		require.NoError(t, err)
		var all sync.WaitGroup
		for i := range test.callers {
			all.Go(func() {
				for _, size := range []int{0, 1, 127, 128, 500, floorLarge - 1, floorLarge, floorLarge + 1, floorBuffer + i, 1 << 20, 3} {
					payload := make([]byte, size)
					for j := range payload {
						payload[j] = byte(i + j*j)
					}
					call := c.caller(payload)
					for range 3 {
						assert.NoError(t, call(), "%d bytes", size)
					}
				}
			})
		}
		all.Wait()
		require.NoError(t, c.close())
		require.NoError(t, srv.close())
	}
}

// TestFloorEnds checks that a waiting caller fails when the connection closes.
func TestFloorEnds(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	c, err := dialFloor(t.Context(), "tcp", l.Addr().String())
	require.NoError(t, err)
	nc, err := l.Accept()
	require.NoError(t, err)
	failed := make(chan error, 1)
	go func() { failed <- c.caller([]byte("x"))() }()
	var one [1]byte
	_, err = nc.Read(one[:]) // the request has been sent
	require.NoError(t, err)
	require.NoError(t, nc.Close())
	require.Error(t, <-failed)
	require.Error(t, c.caller([]byte("y"))())
	require.NoError(t, c.close())
	require.NoError(t, l.Close())
}
