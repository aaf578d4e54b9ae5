package main

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"strconv"
	"sync"

	"github.com/raylink/raylink"
	bulkv1 "github.com/raylink/raylink/bench/gen/bulk/v1"
	"github.com/raylink/raylink/bench/gen/bulk/v1/bulkv1raylink"
	"github.com/raylink/raylink/runtime"
)

// The baselines of several machines: the same bytes, in streams of RayLink.
const (
	tunnelSystem = "tunnel"  // a stream to each receiver
	oneHopSystem = "one-hop" // a stream to one receiver, whatever their number
)

// bulkNode writes a stream into mapped memory.
type bulkNode struct {
	bulkv1raylink.UnimplementedBulkNode

	memory []byte
}

// Store is not concurrent: it runs as a turn of the node, which guards the memory.
func (b *bulkNode) Store(_ context.Context, stream bulkv1raylink.BulkStoreServerStream) (*bulkv1.StoreResponse, error) {
	var sum uint32
	at := 0
	for {
		req, err := stream.Receive()
		if errors.Is(err, io.EOF) {
			if at != len(b.memory) {
				return nil, fmt.Errorf("the content has %d bytes instead of %d", at, len(b.memory))
			}
			return &bulkv1.StoreResponse{Checksum: sum}, nil
		}
		if err != nil {
			return nil, err
		}
		n := copy(b.memory[at:], req.GetPart())
		sum = crc32.Update(sum, castagnoli, b.memory[at:at+n])
		at += n
	}
}

// tunnelReceiver hosts a node that receives.
type tunnelReceiver struct {
	rt     *raylink.Runtime
	memory fileMemory
}

// newTunnelReceiver hosts a node with memory of a size in a file, the words.
func newTunnelReceiver(ctx context.Context, words []string) (reader, string, error) {
	size, err := strconv.Atoi(words[1])
	if err != nil {
		return nil, "", err
	}
	r := &tunnelReceiver{memory: fileMemory{path: words[0]}}
	memory, err := r.memory.of(size)
	if err != nil {
		return nil, "", err
	}
	r.rt, err = raylink.Init(ctx, bulkv1raylink.BulkType(func(context.Context, *runtime.Node) (bulkv1raylink.BulkNode, error) {
		return &bulkNode{memory: memory}, nil
	}))
	if err != nil {
		return nil, "", err
	}
	bulk, err := bulkv1raylink.CreateBulk(ctx, r.rt, runtime.ParentProcess())
	if err != nil {
		return nil, "", errors.Join(err, r.close())
	}
	return r, bulk.Ref().Path(), nil
}

// pull returns what was received last. It must not be called during a push.
func (r *tunnelReceiver) pull(_ context.Context, size int) ([]byte, func() error, error) {
	memory, err := r.memory.of(size)
	return memory, func() error { return nil }, err
}

func (r *tunnelReceiver) close() error { return errors.Join(r.rt.Close(), r.memory.close()) }

// tunnelPusher sends to nodes that receive.
type tunnelPusher struct {
	rt    *raylink.Runtime
	nodes []*bulkv1raylink.Bulk
}

// newTunnelPusher sends to the nodes with these paths.
func newTunnelPusher(ctx context.Context, paths []string) (pusher, string, error) {
	rt, err := raylink.Init(ctx)
	if err != nil {
		return nil, "", err
	}
	p := &tunnelPusher{rt: rt}
	for _, path := range paths {
		node, err := bulkv1raylink.FindBulk(ctx, rt, runtime.Path(path))
		if err != nil {
			return nil, "", errors.Join(err, rt.Close())
		}
		p.nodes = append(p.nodes, node)
	}
	return p, "", nil
}

// push sends to all nodes at once, and returns when each has everything.
func (p *tunnelPusher) push(ctx context.Context, parameters []byte, _ bool) error {
	errs := make([]error, len(p.nodes))
	var all sync.WaitGroup
	for i, node := range p.nodes {
		all.Go(func() { errs[i] = sendBulk(ctx, node, parameters) })
	}
	all.Wait()
	return errors.Join(errs...)
}

func sendBulk(ctx context.Context, node *bulkv1raylink.Bulk, parameters []byte) error {
	stream, err := node.Store(ctx)
	if err != nil {
		return err
	}
	for at := 0; at < len(parameters); at += chunkBytes {
		// Send does not keep the request, nor its bytes.
		err := stream.Send(&bulkv1.StoreRequest{Part: parameters[at:min(at+chunkBytes, len(parameters))]})
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		if err != nil {
			break // the response has the error
		}
	}
	_, err = stream.CloseAndReceive()
	return err
}

func (p *tunnelPusher) close() error { return p.rt.Close() }
