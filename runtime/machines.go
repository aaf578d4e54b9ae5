package runtime

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	goruntime "runtime"
	"slices"
	"strings"
	"sync"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/encoding/protojson"

	machinev1 "github.com/raylink/raylink/gen/raylink/machine/v1"
	"github.com/raylink/raylink/gen/raylink/machine/v1/machinev1connect"
	nodev1 "github.com/raylink/raylink/gen/raylink/node/v1"
	"github.com/raylink/raylink/internal/machine"
	"github.com/raylink/raylink/internal/programs"
	"github.com/raylink/raylink/runtime/launch"
	"github.com/raylink/raylink/runtime/rundir"
)

// A host keeps the machine that it is on, unless its process was launched for a node: it declares
// to Brain what the machine has, and launches processes there for hosts on other machines. This
// file is the keeper's side; remotelaunch.go is that of the host that creates a node.

// machineKeeper is what a host needs to keep its machine.
type machineKeeper struct {
	host *Host
	// declared is the machine as Brain gets it.
	declared *machinev1.Machine
	keeper   *launch.Keeper
	programs *launch.Executables
	// installed are the programs that need not be fetched.
	installed programs.Installed

	mu sync.Mutex // guards the fields below
	// cache has programs of others; it is opened on first use.
	cache *programs.Cache
}

// newMachineKeeper finds out what the machine has. What the options say takes precedence. It
// returns nil for a machine of which that is not possible, unless the host is to be its agent.
func newMachineKeeper(h *Host, agent bool) (*machineKeeper, error) {
	given := h.options.Machine
	found, err := machine.Detect()
	if err != nil && !agent {
		h.log.Warn("it can't be found out what this machine has: it runs only the nodes that its own programs create", slog.Any("error", err))
		return nil, nil //nolint:nilnil // as said
	}
	if err != nil {
		return nil, fmt.Errorf("finding out what this machine has: %w", err)
	}
	resources, err := machine.ParseResources(given.Resources)
	if err == nil {
		err = machine.Labels(given.Labels).Check()
	}
	if err != nil {
		return nil, connect.Errorf(connect.CodeInvalidArgument, "the description of this machine: %v", err).WithCause(err)
	}
	has := found.Resources()
	maps.Copy(has, resources)
	gpus := int(has[machine.GPU] / machine.Unit)
	if gpus > len(found.GPUs) {
		return nil, connect.Errorf(connect.CodeInvalidArgument, "this machine should have %d GPUs, and %d were found: "+
			"give others a name of their own, such as accelerator=%d", gpus, len(found.GPUs), gpus)
	}
	declared := &machinev1.Machine{
		Id: h.machine, Name: cmp.Or(given.Name, os.Getenv(rundir.MachineEnv), found.Hostname),
		Platform: &machinev1.Platform{Os: found.GOOS, Arch: found.GOARCH}, Resources: has,
		Gpus: found.GPUs[:gpus], Labels: given.Labels, Agent: agent, Programs: slices.Sorted(maps.Keys(given.Programs)),
	}
	k := &machineKeeper{host: h, declared: declared, installed: make(programs.Installed)}
	for name, path := range given.Programs {
		if err := k.installed.Install(name + "=" + path); err != nil {
			return nil, connect.Errorf(connect.CodeInvalidArgument, "%v", err).WithCause(err)
		}
	}
	k.programs = launch.NewExecutables(launch.WithHelloTimeout(h.options.StartTimeout))
	k.keeper = launch.NewKeeper(launch.KeeperConfig{
		Launch: k.launch,
		Unknown: func(id string) error {
			return connect.Errorf(connect.CodeNotFound, "the launch %s is not known: it has ended, or this host was started since", id)
		},
		Closed:   k.closed,
		Patience: h.options.Lease, StopLimit: h.options.Drain, Log: h.log,
	})
	return k, nil
}

// closed is the error for a launch on a machine that is leaving.
func (k *machineKeeper) closed() error {
	return connect.Errorf(connect.CodeUnavailable, "the machine %s is leaving the system", k.declared.GetName())
}

// machineName is the name of this host's machine, as far as it is known.
func (h *Host) machineName() string {
	if h.machines == nil {
		return h.machine
	}
	return h.machines.declared.GetName()
}

// Machine implements [session.Host].
func (s sessionHost) Machine() *machinev1.Machine {
	if s.host.machines == nil {
		return nil
	}
	return s.host.machines.declared
}

// close ends all processes that were launched for others. Those that have not ended when ctx does
// are killed.
func (k *machineKeeper) close(ctx context.Context) error {
	err := k.keeper.Close(ctx)
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.cache != nil {
		k.cache.Close()
		k.cache = nil
	}
	return err
}

// launch launches a process for a host on another machine, or sets a node up in this one: it is
// [launch.KeeperConfig].Launch.
func (k *machineKeeper) launch(ctx context.Context, what *machinev1.LaunchSpec, spec launch.Spec) (launch.Process, error) {
	if what.GetInProcess() {
		return k.setUpHere(what, spec)
	}
	path, release, err := k.program(ctx, what)
	if err != nil {
		return nil, connect.Errorf(connect.CodeFailedPrecondition, "on %s: %v", k.declared.GetName(), err).WithCause(err)
	}
	settings, err := k.settings()
	if err == nil {
		spec.Env = []string{hostSettingsVariable + "=" + settings}
		var devices []string
		devices, err = devicesEnv(k.declared.GetGpus(), what.GetGpus())
		spec.Env = append(spec.Env, devices...)
	}
	if err != nil {
		release()
		return nil, err
	}
	p, err := k.programs.Launch(ctx, launch.Executable{
		Path: path, Args: what.GetArguments(), Build: what.GetBuild(), HelloTimeout: what.GetHelloTimeout().AsDuration(),
	}, spec)
	if err != nil {
		release()
		return nil, connect.Errorf(connect.CodeUnavailable, "on %s: %v", k.declared.GetName(), err).WithCause(err)
	}
	if !k.host.goBackground(func(context.Context) {
		<-p.Done() // the keeper ends it before the host ends
		release()
	}) {
		release()
	}
	return p, nil
}

// program returns the path of a program's file, which stays until it is released.
func (k *machineKeeper) program(ctx context.Context, what *machinev1.LaunchSpec) (path string, release func(), err error) {
	wanted := what.GetProgram()
	if _, there := k.installed[wanted.GetName()]; there {
		found, err := k.installed.Find(wanted.GetName())
		return found.Path, func() {}, err
	}
	id, err := identityOf(wanted)
	if err != nil {
		return "", nil, err
	}
	if own, err := ownProgram(); err == nil && own.Identity().SHA256 == id.SHA256 && goruntime.GOOS == "linux" {
		return "/proc/self/exe", func() {}, nil
	}
	cache, err := k.openCache(ctx)
	if err != nil {
		return "", nil, err
	}
	use, err := cache.Get(ctx, id, k.host.programFrom(what.GetLauncher(), wanted))
	if err != nil {
		return "", nil, err
	}
	return use.Path(), use.Release, nil
}

// maxProgramBytes bounds the cache of programs.
const maxProgramBytes = 4 << 30

// openCache returns the cache of programs, which is shared with other processes on the same data
// directory.
func (k *machineKeeper) openCache(ctx context.Context) (*programs.Cache, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.cache != nil {
		return k.cache, nil
	}
	data, err := k.host.data()
	if err != nil {
		return nil, err
	}
	k.cache, err = programs.Open(ctx, filepath.Join(data, "programs"), maxProgramBytes)
	return k.cache, err
}

// data is the data directory of this process.
func (h *Host) data() (string, error) {
	switch {
	case h.run != nil:
		return h.run.Data(), nil
	case h.options.Data != "":
		return h.options.Data, nil
	}
	return rundir.DataDir()
}

// programFrom fetches a program from the host that launches it.
func (h *Host) programFrom(launcher *nodev1.HostInfo, wanted *machinev1.Program) programs.Source {
	client := machinev1connect.NewMachineServiceClient(connect.NewClient(h.peers.Host(launcher)))
	return programs.Source{Name: launcher.GetAddress(), Fetch: func(ctx context.Context, offset int64, into io.Writer) error {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		req := &machinev1.FetchProgramRequest{Sha256: wanted.GetSha256(), Offset: uint64(offset)} //nolint:gosec // not negative
		stream, err := client.FetchProgram(own(ctx), req)
		if err != nil {
			return err
		}
		defer stream.Close() //nolint:errcheck // what has arrived is there
		for {
			res, err := stream.Receive()
			if errors.Is(err, io.EOF) {
				return nil
			}
			if err != nil {
				return err
			}
			if _, err := into.Write(res.GetChunk()); err != nil {
				return err
			}
		}
	}}
}

// settings encodes what a process that is launched here for another machine's host has of this
// machine.
func (k *machineKeeper) settings() (string, error) {
	h := k.host
	settings := &machinev1.HostSettings{
		Listen: onFreePort(h.options.Listen), Advertise: onFreePort(h.options.Advertise), Brain: h.options.Brain,
		PortRange: h.options.PortRange, TlsCert: h.options.TLSCert, TlsKey: h.options.TLSKey, TlsCa: h.options.TLSCA,
	}
	if settings.GetBrain() == "" {
		settings.Brain = h.listener.Advertised() // this process has embedded Brain
	}
	if h.run != nil {
		settings.Run = h.run.Path()
	}
	var err error
	if settings.Data, err = h.data(); err != nil {
		return "", err
	}
	text, err := protojson.Marshal(settings)
	return string(text), err
}

// hostSettingsVariable has the [machinev1.HostSettings] of a process whose launcher is on another
// machine. The process removes it from its environment.
const hostSettingsVariable = "RAYLINK_HOST_SETTINGS"

// takeHostSettings returns the settings of this process, or nil if its launcher is on its machine.
func takeHostSettings() (*machinev1.HostSettings, error) {
	text, ok := os.LookupEnv(hostSettingsVariable)
	if !ok {
		return nil, nil //nolint:nilnil // as said
	}
	settings := new(machinev1.HostSettings)
	if err := errors.Join(os.Unsetenv(hostSettingsVariable), protojson.UnmarshalOptions{DiscardUnknown: true}.Unmarshal([]byte(text), settings)); err != nil {
		return nil, fmt.Errorf("%s, which only a machine's keeper should set: %w", hostSettingsVariable, err)
	}
	return settings, nil
}

// applyHostSettings replaces the options that a process has from its launcher by those of its own
// machine.
func applyHostSettings(settings *machinev1.HostSettings, o *Options, p *launchPayload) {
	o.Listen, o.Advertise, o.Brain, o.Data = settings.GetListen(), settings.GetAdvertise(), settings.GetBrain(), settings.GetData()
	o.PortRange, o.TLSCert, o.TLSKey, o.TLSCA = settings.GetPortRange(), settings.GetTlsCert(), settings.GetTlsKey(), settings.GetTlsCa()
	p.Run, p.Outlives = settings.GetRun(), false
}

// devicesEnv returns the variables for a process that has some of a machine's GPUs: none if it has
// none.
func devicesEnv(has []string, allocated []uint32) ([]string, error) {
	if len(allocated) == 0 {
		return nil, nil
	}
	devices := make([]string, len(allocated))
	for i, number := range allocated {
		if int(number) >= len(has) {
			return nil, connect.Errorf(connect.CodeFailedPrecondition, "GPU %d was allocated, and the machine has %d", number, len(has))
		}
		devices[i] = has[number]
	}
	return []string{machine.VisibleDevices + "=" + strings.Join(devices, ",")}, nil
}

// ownProgram is this process's executable, open as long as the process lives.
var ownProgram = sync.OnceValues(programs.Self) //nolint:gochecknoglobals // a process has one

// machineService serves MachineService: over tunnels only, to hosts of the system.
type machineService struct{ host *Host }

var _ machinev1connect.MachineServiceHandler = machineService{}

// Launch implements the service.
func (s machineService) Launch(ctx context.Context, stream machinev1connect.MachineServiceLaunchServerStream) error {
	if s.host.machines == nil {
		return connect.NewError(connect.CodeFailedPrecondition, "this process was launched for a node: it keeps no machine, and launches nothing for others")
	}
	return s.host.machines.keeper.Serve(ctx, stream)
}

// FetchProgram implements the service.
func (s machineService) FetchProgram(
	ctx context.Context, req *machinev1.FetchProgramRequest, stream machinev1connect.MachineServiceFetchProgramServerStream,
) error {
	program, err := ownProgram()
	if err != nil {
		return connect.Errorf(connect.CodeFailedPrecondition, "this process's program can't be read: %v", err).WithCause(err)
	}
	id := program.Identity()
	if asked := req.GetSha256(); len(asked) > 0 && !slices.Equal(asked, id.SHA256[:]) {
		return connect.Errorf(connect.CodeNotFound, "this process runs %s with the SHA-256 %x, and not %x", id.Name, id.SHA256, asked)
	}
	s.host.log.Info("the program is sent to another machine", slog.String("program", id.Name), slog.Uint64("from", req.GetOffset()),
		slog.Int64("bytes", id.Size))
	for offset := int64(min(req.GetOffset(), 1<<62)); ; {
		chunk, err := program.Chunk(offset)
		if err != nil {
			return connect.Errorf(connect.CodeInvalidArgument, "%v", err)
		}
		if len(chunk) == 0 {
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err := stream.Send(&machinev1.FetchProgramResponse{Chunk: chunk}); err != nil {
			return err
		}
		offset += int64(len(chunk))
	}
}

// programMessage converts the identity of a program to its message.
func programMessage(id programs.Identity) *machinev1.Program {
	return &machinev1.Program{
		Sha256: id.SHA256[:], Size: uint64(id.Size), Name: id.Name, //nolint:gosec // not negative
		Platform: &machinev1.Platform{Os: id.GOOS, Arch: id.GOARCH},
	}
}

// identityOf converts the identity of a program from its message.
func identityOf(p *machinev1.Program) (programs.Identity, error) {
	id := programs.Identity{
		Size: int64(min(p.GetSize(), 1<<62)), GOOS: p.GetPlatform().GetOs(), GOARCH: p.GetPlatform().GetArch(), Name: p.GetName(),
	}
	if copy(id.SHA256[:], p.GetSha256()) != len(p.GetSha256()) || len(p.GetSha256()) != len(id.SHA256) {
		return id, connect.Errorf(connect.CodeInvalidArgument, "a program is named by its SHA-256, of 32 bytes and not %d", len(p.GetSha256()))
	}
	return id, nil
}
