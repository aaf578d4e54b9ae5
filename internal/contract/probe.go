// Package contract is the one test of what a call does, for every way that a call can take. Start
// with [Run].
package contract

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connectproto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/emptypb"

	nodev1 "github.com/raylink/raylink/gen/raylink/node/v1"
	contractv1 "github.com/raylink/raylink/internal/contract/gen/contract/v1"
	"github.com/raylink/raylink/internal/contract/gen/contract/v1/contractv1raylink"
	raylink "github.com/raylink/raylink/runtime"
)

// Probe is the node under test. Its requests select what it does.
type Probe struct {
	node *raylink.Node
	// stubs are those that this stub can reach, by name; nil in a system.
	stubs *Stubs

	// sum is guarded by the node's turns; everything below by mu.
	sum int64

	mu        sync.Mutex
	added     []int64
	blocked   []string
	cancelled []string
	releases  map[string]chan struct{}
	holds     map[string]*raylink.Hold
}

var _ contractv1raylink.ProbeNode = (*Probe)(nil)

// ErrPlain is a plain error, which a local caller can find with errors.Is.
var ErrPlain = errors.New("a plain error")

func newProbe() *Probe {
	return &Probe{releases: make(map[string]chan struct{}), holds: make(map[string]*raylink.Hold)}
}

// Types are the node types of the contract test.
func Types() []raylink.Option {
	return []raylink.Option{contractv1raylink.ProbeType(setUpProbe), contractv1raylink.OtherType(setUpOther)}
}

func setUpProbe(ctx context.Context, node *raylink.Node, config *contractv1.ProbeConfig) (contractv1raylink.ProbeNode, error) {
	p := newProbe()
	p.node = node
	p.sum = config.GetStart()
	if config.GetPidFile() != "" {
		if err := os.WriteFile(config.GetPidFile(), fmt.Appendln(nil, os.Getpid()), 0o600); err != nil {
			return nil, err
		}
	}
	misbehave(config.GetFail())
	if config.GetPrint() != "" {
		fmt.Println(config.GetPrint())
	}
	if config.GetExit() {
		fmt.Fprintln(os.Stderr, "the probe leaves")
		os.Exit(7)
	}
	if config.GetWait() != nil {
		t := time.NewTimer(config.GetWait().AsDuration())
		defer t.Stop()
		ended := ctx.Done()
		if config.GetDeaf() {
			ended = nil
		}
		select {
		case <-t.C:
		case <-ended:
			return nil, ctx.Err()
		}
	}
	if config.GetNothing() {
		return (*Probe)(nil), nil
	}
	if command := config.GetCommand(); len(command) > 0 {
		cmd := exec.Command(command[0], command[1:]...)
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		if err := cmd.Start(); err != nil {
			return nil, err
		}
	}
	for range config.GetChildren() {
		if _, err := contractv1raylink.CreateProbe(ctx, node, &contractv1.ProbeConfig{}); err != nil {
			return nil, err
		}
	}
	if config.GetFail() != "" {
		return nil, errors.New(invalidText(config.GetFail()))
	}
	return p, nil
}

// Add implements contractv1raylink.ProbeNode.
func (p *Probe) Add(_ context.Context, req *contractv1.AddRequest) (*contractv1.AddResponse, error) {
	p.sum += req.GetBy()
	p.mu.Lock()
	p.added = append(p.added, req.GetBy())
	p.mu.Unlock()
	return &contractv1.AddResponse{Sum: p.sum}, nil
}

// Echo implements contractv1raylink.ProbeNode.
func (p *Probe) Echo(_ context.Context, req *contractv1.EchoRequest) (*contractv1.EchoResponse, error) {
	return &contractv1.EchoResponse{Payload: req.GetPayload()}, nil
}

// Fail implements contractv1raylink.ProbeNode.
func (p *Probe) Fail(ctx context.Context, req *contractv1.FailRequest) (*contractv1.FailResponse, error) {
	if err := act(ctx); err != nil {
		return nil, err
	}
	switch {
	case req.GetPanic():
		panic(req.GetMessage())
	case req.GetGoexit():
		runtime.Goexit()
	case req.GetNothing():
		return nil, nil //nolint:nilnil // the test is for this result
	case req.GetCode() == 0:
		return nil, fmt.Errorf("%s: %w", req.GetMessage(), ErrPlain)
	}
	err := connect.NewError(connect.Code(req.GetCode()), req.GetMessage())
	if req.GetDetail() != "" {
		d, derr := connectproto.NewErrorDetail(&contractv1.Detail{Text: req.GetDetail()})
		if derr != nil {
			return nil, derr
		}
		err = err.WithDetail(d)
	}
	return nil, err
}

func (p *Probe) release(name string) chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.releases[name] == nil {
		p.releases[name] = make(chan struct{})
	}
	return p.releases[name]
}

// Block implements contractv1raylink.ProbeNode.
func (p *Probe) Block(ctx context.Context, req *contractv1.BlockRequest) (*contractv1.BlockResponse, error) {
	released := p.release(req.GetName())
	if mayHold(ctx, p.hold(req.GetName())) {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.blocked = append(p.blocked, req.GetName())
		return &contractv1.BlockResponse{}, nil
	}
	mayEndTurn(ctx)
	p.mu.Lock()
	p.blocked = append(p.blocked, req.GetName())
	p.mu.Unlock()
	for polls(ctx) && ctx.Err() == nil {
		runtime.Gosched()
	}
	select {
	case <-released:
		return &contractv1.BlockResponse{}, nil
	case <-ctx.Done():
		p.mu.Lock()
		p.cancelled = append(p.cancelled, req.GetName())
		p.mu.Unlock()
		return nil, ctx.Err()
	}
}

// BlockBeside implements contractv1raylink.ProbeNode.
func (p *Probe) BlockBeside(ctx context.Context, req *contractv1.BlockRequest) (*contractv1.BlockResponse, error) {
	return p.Block(ctx, req)
}

// Release implements contractv1raylink.ProbeNode.
func (p *Probe) Release(_ context.Context, req *contractv1.ReleaseRequest) (*contractv1.ReleaseResponse, error) {
	name := req.GetName()
	close(p.release(name))
	var err error
	if name == failsHeld {
		err = connect.NewError(connect.CodeDataLoss, name)
	}
	p.hold(name).Release(err)
	return &contractv1.ReleaseResponse{}, nil
}

func (p *Probe) hold(name string) *raylink.Hold {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.holds[name] == nil {
		p.holds[name] = &raylink.Hold{}
	}
	return p.holds[name]
}

// Who (of contractv1raylink.ProbeNode) returns what it knows of its call.
func (p *Probe) Who(ctx context.Context, req *contractv1.WhoRequest) (*contractv1.WhoResponse, error) {
	call := raylink.CallFrom(ctx)
	if req.GetHeader() != "" {
		call.SetHeader("probe-header", req.GetHeader())
	}
	if req.GetTrailer() != "" {
		call.SetTrailer("probe-trailer", req.GetTrailer())
	}
	res := &contractv1.WhoResponse{
		CallerPath: call.Caller().Path, CallerNid: call.Caller().NID, Metadata: call.Metadata().Values(req.GetKey()), Way: string(call.Way()),
		Pid: int64(os.Getpid()), Path: raylink.NodeFrom(ctx).Path(),
	}
	switch call.Metadata().Get(actionKey) {
	case "unsendable":
		res.CallerPath = "caf\xe9"
	case "undecodable":
		undecodable(res)
	}
	if deadline, ok := ctx.Deadline(); ok {
		res.HasDeadline = true
		res.Remaining = durationpb.New(time.Until(deadline))
	}
	return res, nil
}

// Nothing implements contractv1raylink.ProbeNode.
func (p *Probe) Nothing(context.Context, *emptypb.Empty) (*emptypb.Empty, error) {
	return nil, nil //nolint:nilnil // nil means the empty message
}

// Count implements contractv1raylink.ProbeNode.
func (p *Probe) Count(ctx context.Context, req *contractv1.CountRequest, stream contractv1raylink.ProbeCountServerStream) error {
	if err := act(ctx); err != nil {
		return err
	}
	for i := range req.GetTo() {
		res := &contractv1.CountResponse{Number: i + 1, Payload: make([]byte, req.GetPayload())}
		if raylink.CallFrom(ctx).Metadata().Get(actionKey) == "undecodable" && i == 1 {
			undecodable(res)
		}
		if err := stream.Send(res); err != nil {
			p.mu.Lock()
			p.cancelled = append(p.cancelled, "count")
			p.mu.Unlock()
			return err
		}
	}
	if which, ok := forgery(req.GetFail()); ok {
		return p.count(which)
	}
	misbehave(req.GetFail())
	switch {
	case req.GetFail() == "":
		return nil
	case req.GetPlain():
		return fmt.Errorf("%s: %w", req.GetFail(), ErrPlain)
	}
	return connect.NewError(connect.CodeDataLoss, req.GetFail())
}

// Sum implements contractv1raylink.ProbeNode.
func (p *Probe) Sum(ctx context.Context, stream contractv1raylink.ProbeSumServerStream) (*contractv1.SumResponse, error) {
	if err := act(ctx); err != nil {
		return nil, err
	}
	var sum int64
	for {
		req, err := stream.Receive()
		if errors.Is(err, io.EOF) {
			res := &contractv1.SumResponse{Sum: sum}
			if raylink.CallFrom(ctx).Metadata().Get(actionKey) == "undecodable" {
				undecodable(res)
			}
			return res, raylink.NodeFrom(ctx).Do(ctx, func(context.Context) error {
				p.sum += sum
				return nil
			})
		}
		if err != nil {
			p.mu.Lock()
			p.cancelled = append(p.cancelled, "sum")
			p.mu.Unlock()
			return nil, err
		}
		switch req.GetNumber() {
		case sumPanics:
			misbehave(WordPanic)
		case sumGoexits:
			misbehave(WordGoexit)
		}
		if req.GetNumber() < 0 {
			return nil, connect.NewError(connect.CodeInvalidArgument, "a negative number")
		}
		sum += req.GetNumber()
		p.mu.Lock()
		p.blocked = append(p.blocked, "sum")
		p.mu.Unlock()
	}
}

// Chat implements contractv1raylink.ProbeNode.
func (p *Probe) Chat(ctx context.Context, stream contractv1raylink.ProbeChatServerStream) error {
	if err := act(ctx); err != nil {
		return err
	}
	answer := "you said "
	if raylink.CallFrom(ctx).Metadata().Get(actionKey) == "unsendable" {
		answer = "caf\xe9"
	}
	for {
		req, err := stream.Receive()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if which, ok := forgery(req.GetText()); ok {
			return p.count(which)
		}
		misbehave(req.GetText())
		if err == nil && req.GetText() == "bye" {
			return nil
		}
		if err == nil {
			err = stream.Send(&contractv1.ChatResponse{Text: answer + req.GetText()})
		}
		if err != nil { // the caller may have ended before the response is sent
			p.mu.Lock()
			p.cancelled = append(p.cancelled, "chat")
			p.mu.Unlock()
			return err
		}
	}
}

// Log implements contractv1raylink.ProbeNode.
func (p *Probe) Log(context.Context, *contractv1.LogRequest) (*contractv1.LogResponse, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return &contractv1.LogResponse{Added: slices.Clone(p.added), Blocked: slices.Clone(p.blocked), Cancelled: slices.Clone(p.cancelled)}, nil
}

// Spawn implements contractv1raylink.ProbeNode.
func (p *Probe) Spawn(ctx context.Context, req *contractv1.SpawnRequest) (*contractv1.SpawnResponse, error) {
	if p.node == nil {
		return nil, connect.NewError(connect.CodeFailedPrecondition, "a stub has no children")
	}
	mayEndTurn(ctx)
	opts := []raylink.CreateOption{raylink.OwnProcess()}
	if req.GetInProcess() {
		opts[0] = raylink.ParentProcess()
	}
	children, err := contractv1raylink.CreateProbeN(ctx, p.node, int(max(1, req.GetCount())), req.GetConfig(), opts...)
	if err != nil {
		return nil, err
	}
	var refs []*nodev1.NodeRef
	for _, c := range children {
		refs = append(refs, c.Ref().NodeRef())
	}
	return &contractv1.SpawnResponse{Children: refs}, nil
}

// NotUTF8 stands, in a request's text, for a byte that is not UTF-8, which no request can carry.
const NotUTF8 = "{ff}"

func invalidText(text string) string { return strings.ReplaceAll(text, NotUTF8, "\xff") }

// Crash implements contractv1raylink.ProbeNode.
func (p *Probe) Crash(ctx context.Context, req *contractv1.CrashRequest) (*contractv1.CrashResponse, error) {
	if req.GetTask() != "" && p.node != nil {
		p.node.Go(func(context.Context) error { return errors.New(invalidText(req.GetTask())) })
		return &contractv1.CrashResponse{}, nil
	}
	if req.GetStop() != "" && p.node != nil {
		ref := p.node.Ref()
		if req.GetStop() != "." {
			found, err := raylink.FindAny(ctx, p.node, raylink.Path(req.GetStop()))
			if err != nil {
				return nil, err
			}
			ref = found
		}
		return &contractv1.CrashResponse{}, ref.Stop(ctx)
	}
	if req.GetQuietly() {
		os.Exit(0)
	}
	os.Exit(3)
	return &contractv1.CrashResponse{}, nil
}

type other struct {
	contractv1raylink.UnimplementedOtherNode
}

func setUpOther(context.Context, *raylink.Node) (contractv1raylink.OtherNode, error) {
	return other{}, nil
}
