package machinetest

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect/v2"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/raylink/raylink"
	nodev1 "github.com/raylink/raylink/gen/raylink/node/v1"
	contractv1 "github.com/raylink/raylink/internal/contract/gen/contract/v1"
	"github.com/raylink/raylink/internal/contract/gen/contract/v1/contractv1raylink"
	"github.com/raylink/raylink/internal/machine"
	"github.com/raylink/raylink/internal/proctest"
	"github.com/raylink/raylink/join"
	"github.com/raylink/raylink/runtime"
)

const (
	// role is the environment variable that makes this binary a driver or an agent.
	role       = "RAYLINK_TEST_MACHINES"
	driverRole = "driver"
	agentRole  = "agent"
	// listen is that of the address to listen at, brain that of Brain's, and description that of a
	// machine, as JSON.
	listen      = "RAYLINK_TEST_MACHINES_LISTEN"
	brainAt     = "RAYLINK_TEST_MACHINES_BRAIN"
	description = "RAYLINK_TEST_MACHINES_DESCRIPTION"
	// encrypted is that of a system with TLS, whose agents have its token in RAYLINK_TOKEN.
	encrypted = "RAYLINK_TEST_MACHINES_ENCRYPTED"
	// token is that of all systems.
	token = "a token of the tests of machines"
	// lease is the lease of all hosts.
	lease = 2 * time.Second
)

func TestMain(m *testing.M) {
	// The race detector delays the exit of every process by a second.
	if err := os.Setenv("GORACE", "atexit_sleep_ms=0"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	var err error
	switch what := os.Getenv(role); what {
	case "":
		goleak.VerifyTestMain(m)
		return
	case driverRole:
		err = drive()
	case agentRole:
		err = serveAgent()
	default:
		err = fmt.Errorf("there is no role %q", what)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, os.Getenv(role)+":", err)
		os.Exit(1)
	}
	os.Exit(0)
}

func options() []runtime.Option {
	var described runtime.MachineOptions
	if text := os.Getenv(description); text != "" {
		if err := json.Unmarshal([]byte(text), &described); err != nil { //nolint:musttag // as descriptionOf
			panic(err)
		}
	}
	options := []runtime.Option{
		runtime.WithMachine(described), runtime.WithLease(lease), runtime.WithDrain(lease), contractv1raylink.ProbeType(setUp),
	}
	if address := os.Getenv(listen); address != "" {
		options = append(options, runtime.WithListen(address))
	}
	if os.Getenv(encrypted) == "" {
		options = append(options, runtime.WithToken(token), runtime.WithInsecure())
	}
	return options
}

// serveAgent is the main function of an agent, until its input ends.
func serveAgent() error {
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		stop()
	}()
	return join.Agent(ctx, append(options(), runtime.WithBrain(os.Getenv(brainAt)))...)
}

// setUp makes a node that publishes what it finds in its process.
func setUp(ctx context.Context, node *runtime.Node, config *contractv1.ProbeConfig) (contractv1raylink.ProbeNode, error) {
	if config.GetPrint() != "" {
		fmt.Println(config.GetPrint())
		fmt.Fprintln(os.Stderr, "to the error output: "+config.GetPrint())
	}
	if config.GetFail() != "" {
		return nil, errors.New(config.GetFail())
	}
	if config.GetExit() {
		os.Exit(7)
	}
	wait := time.NewTimer(config.GetWait().AsDuration())
	defer wait.Stop()
	select {
	case <-wait.C:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	for key, value := range map[string]string{
		"machine": os.Getenv("RAYLINK_MACHINE"), "devices": os.Getenv("CUDA_VISIBLE_DEVICES"), "has": node.Resources().String(),
		"token": os.Getenv("RAYLINK_TOKEN"), "run": node.RunDirectory().Path(),
	} {
		if err := runtime.SetAttribute(ctx, node, key, value); err != nil {
			return nil, err
		}
	}
	p := &probe{node: node}
	if config.GetChildren() > 0 {
		if _, err := contractv1raylink.CreateProbeN(ctx, node, int(config.GetChildren()), nil, runtime.Spread()); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// probe is a node of the tests.
type probe struct {
	contractv1raylink.UnimplementedProbeNode

	node *runtime.Node
	mu   sync.Mutex
	sum  int64
}

// Add implements the node.
func (p *probe) Add(_ context.Context, req *contractv1.AddRequest) (*contractv1.AddResponse, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.sum += req.GetBy()
	return &contractv1.AddResponse{Sum: p.sum}, nil
}

// order is what a test has the driver do: a line of JSON at its standard input.
type order struct {
	// ID is repeated in the answer.
	ID int    `json:"id"`
	Do string `json:"do"`
	// N nodes are created, or N rows are written.
	N int `json:"n"`
	// Resources, as text, and Labels are what each requires.
	Resources string            `json:"resources"`
	Labels    map[string]string `json:"labels"`
	On        string            `json:"on"`
	Near      string            `json:"near"`
	Strategy  string            `json:"strategy"`
	// Below is the path of the parent; empty for the driver.
	Below    string        `json:"below"`
	Here     bool          `json:"here"`
	InAgent  bool          `json:"in_agent"`
	Print    string        `json:"print"`
	Fail     string        `json:"fail"`
	Exit     bool          `json:"exit"`
	Wait     time.Duration `json:"wait"`
	Children uint32        `json:"children"`
	// Path is that of the node to call or to stop, or which uses a service; empty for the driver.
	Path string `json:"path"`
	// Milliseconds bound the operation; the default is proctest.Patience.
	Milliseconds int `json:"milliseconds"`
}

// Numbered implements [proctest.Order].
func (o order) Numbered(id int) order {
	o.ID = id
	return o
}

// String implements [proctest.Order].
func (o order) String() string { return fmt.Sprintf("%s %s %s", o.Do, o.Path, o.Resources) }

// answer is the driver's answer to an order, or an event: a line of JSON at its standard output.
type answer struct {
	// ID is the order's; 0 in an event.
	ID    int    `json:"id,omitempty"`
	Event string `json:"event,omitempty"`
	Error string `json:"error,omitempty"`
	Code  string `json:"code,omitempty"`
	Nodes []node `json:"nodes,omitempty"`
	Sum   int64  `json:"sum,omitempty"`
	// Mapped is set if a service's files were used in place.
	Mapped bool `json:"mapped,omitempty"`
	// Line is a line of output of the node with the path From, or pulled parameters.
	From string `json:"from,omitempty"`
	Line string `json:"line,omitempty"`
	// Run is the driver's run directory.
	Run string `json:"run,omitempty"`
}

// node is what the driver says of a node.
type node struct {
	Path string `json:"path"`
	NID  string `json:"nid"`
	// Machine is that of its host, Allocated that of its allocation.
	Machine    string            `json:"machine"`
	Allocated  string            `json:"allocated"`
	PID        int               `json:"pid"`
	Address    string            `json:"address"`
	GPUs       []uint32          `json:"gpus"`
	Attributes map[string]string `json:"attributes"`
}

// Number implements [proctest.Answer].
func (a answer) Number() int { return a.ID }

// What implements [proctest.Answer].
func (a answer) What() string { return a.Event }

// Err implements [proctest.Answer].
func (a answer) Err() string { return a.Error }

// Failed implements [proctest.Answer].
func (a answer) Failed(code, text string) answer {
	a.Code, a.Error = code, text
	return a
}

// drive is the main function of the driver, and of the processes of its nodes.
func drive() error {
	var mu sync.Mutex
	say := func(a answer) {
		mu.Lock()
		defer mu.Unlock()
		line, err := json.Marshal(a)
		if err != nil {
			panic(err)
		}
		fmt.Printf("%s\n", line)
	}
	rt, err := raylink.Init(context.Background(), append(options(),
		runtime.WithOutput(func(path, line string) { say(answer{Event: "line", From: path, Line: line}) }))...)
	if err != nil {
		return err
	}
	say(answer{Event: proctest.Serving})
	var orders sync.WaitGroup
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		var o order
		if err := json.Unmarshal(in.Bytes(), &o); err != nil {
			return err
		}
		orders.Go(func() {
			a, err := execute(rt, o)
			a.ID = o.ID
			if err != nil {
				a.Error, a.Code = err.Error(), connect.CodeOf(err).String()
			}
			say(a)
		})
	}
	err = rt.Close() // ends the orders that have not ended
	orders.Wait()
	return err
}

func execute(rt *raylink.Runtime, o order) (a answer, err error) {
	limit := proctest.Patience
	if o.Milliseconds > 0 {
		limit = time.Duration(o.Milliseconds) * time.Millisecond
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	switch o.Do {
	case "create":
		return create(ctx, rt, o)
	case "describe":
		p, err := contractv1raylink.FindProbe(ctx, rt, runtime.Path(o.Path))
		if err != nil {
			return a, err
		}
		a.Nodes = []node{described(p.Ref().Record())}
		return a, nil
	case "add":
		p, err := contractv1raylink.FindProbe(ctx, rt, runtime.Path(o.Path))
		if err != nil {
			return a, err
		}
		res, err := p.Add(ctx, &contractv1.AddRequest{By: 1})
		a.Sum = res.GetSum()
		return a, err
	case "stop":
		p, err := contractv1raylink.FindProbe(ctx, rt, runtime.Path(o.Path))
		if err != nil {
			return a, err
		}
		return a, p.Ref().Stop(ctx)
	case "children":
		records, err := rt.Children(ctx)
		for _, rec := range records {
			a.Nodes = append(a.Nodes, described(rec))
		}
		return a, err
	case "create replay":
		return a, createReplay(ctx, rt)
	case "push", "pull", "officers", "count", "rows":
		if o.Path != "" {
			return useAt(ctx, rt, o)
		}
		return use(ctx, rt, o)
	case "token":
		token, err := os.ReadFile(rt.TokenFile())
		a.Line = strings.TrimSpace(string(token))
		return a, err
	case "run":
		a.Run = rt.RunDirectory().Path()
		return a, nil
	default:
		return a, fmt.Errorf("there is no order to %q", o.Do)
	}
}

func create(ctx context.Context, rt *raylink.Runtime, o order) (a answer, err error) {
	resources, err := machine.ParseResources(o.Resources)
	if err != nil {
		return a, err
	}
	required := runtime.Resources{
		CPUs: float64(resources[machine.CPU]) / machine.Unit, Memory: resources[machine.Memory], GPUs: int(resources[machine.GPU] / machine.Unit),
	}
	if n := resources["licence"]; n > 0 {
		required.Other = map[string]float64{"licence": float64(n) / machine.Unit}
	}
	options := []runtime.CreateOption{runtime.Requires(required, o.Labels)}
	if o.On != "" {
		options = append(options, runtime.On(o.On))
	}
	if o.Near != "" {
		p, err := contractv1raylink.FindProbe(ctx, rt, runtime.Path(o.Near))
		if err != nil {
			return a, err
		}
		options = append(options, runtime.Near(p.Ref()))
	}
	switch o.Strategy {
	case "spread":
		options = append(options, runtime.Spread())
	case "pack":
		options = append(options, runtime.Pack())
	case "one":
		options = append(options, runtime.OnePerMachine())
	}
	if o.Here {
		options = append(options, runtime.Here())
	}
	if o.InAgent {
		options = append(options, runtime.AgentProcess())
	}
	var parent runtime.Parent = rt
	if o.Below != "" {
		below, err := contractv1raylink.FindProbe(ctx, rt, runtime.Path(o.Below))
		if err != nil {
			return a, err
		}
		parent = below.Ref()
	}
	config := &contractv1.ProbeConfig{Print: o.Print, Fail: o.Fail, Exit: o.Exit, Wait: durationpb.New(o.Wait), Children: o.Children}
	probes, err := contractv1raylink.CreateProbeN(ctx, parent, max(1, o.N), config, options...)
	for _, p := range probes {
		a.Nodes = append(a.Nodes, described(p.Ref().Record())) // they exist, whatever becomes of the call
		_, called := p.Add(ctx, &contractv1.AddRequest{})
		err = errors.Join(err, called)
	}
	return a, err
}

func described(rec *nodev1.NodeRecord) node {
	n := node{
		Path: rec.GetPath(), NID: rec.GetNid(), Machine: rec.GetHost().GetMachine(), Allocated: rec.GetAllocation().GetMachine(),
		PID: int(rec.GetHost().GetPid()), Address: rec.GetHost().GetAddress(), GPUs: rec.GetAllocation().GetGpus(), Attributes: make(map[string]string),
	}
	for key, value := range rec.GetAttributes() {
		n.Attributes[key] = strings.TrimSpace(value.GetStringValue())
	}
	return n
}
