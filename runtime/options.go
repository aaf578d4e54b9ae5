package runtime

import (
	"cmp"
	"errors"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"time"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/proto"

	nodev1 "github.com/raylink/raylink/gen/raylink/node/v1"
	"github.com/raylink/raylink/internal/logs"
	"github.com/raylink/raylink/runtime/launch"
	"github.com/raylink/raylink/runtime/rundir"
)

// Options configure a runtime. Each [Option] sets a field. A field that no option sets takes its
// value from its environment variable, where one is named below, or else its default.
type Options struct {
	// InheritedOptions are those that also reach the processes of its nodes.
	InheritedOptions

	// Types are the node types that this process can host. Their names must be distinct.
	Types []NodeType
	// Compression compresses HTTP responses with gzip, for clients on other machines that accept it
	// and where it makes a message smaller. It is off by default: on a fast network it costs more
	// time than it saves. Compressed requests are always accepted. The setting of Brain's process
	// applies to every host that joins.
	Compression bool
	// Logger receives the runtime's log records, in addition to the file `driver.log` in the run
	// directory. By default warnings and errors are written to standard error. RAYLINK_LOG changes
	// that: a level (debug, info, warn, error), levels for parts (`warn,tunnel=debug`; the parts
	// are brain, host, session and tunnel), or both; it applies to the file too, whose default is
	// info. A handler may block a record for at most 200 ms. After that up to 256 records are
	// queued in the background until it returns; further ones are dropped and counted.
	Logger *slog.Logger
	// KeepRuns is how many run directories to keep in Data. When a run begins, older ones are
	// removed unless they contain a file `keep` or are in use by a process. RAYLINK_KEEP_RUNS. The
	// default is 20; a negative number keeps all.
	KeepRuns int
	// Output receives each line that a node's process writes to its standard output or error. By
	// default the line goes to this process's standard error, prefixed with the node's path. Calls
	// for one node are never concurrent. While Output blocks, so does what the process prints, for
	// at most a second: after that lines go only to the process's log in the run directory until
	// Output returns, a warning is logged, and Close returns an error if it still has not returned.
	Output func(path, line string)
	// Interceptors wrap the serving of every call, the first outermost.
	Interceptors []Interceptor
	// ClientInterceptors wrap the making of every call with a handle of this runtime, by its nodes
	// and by other code of the process, the first outermost. Each process has those that its own
	// call of Init sets.
	ClientInterceptors []ClientInterceptor
	// Events are notified of what happens to this process's nodes, connections and calls.
	Events []EventListener
	// BusyPoll is how long a goroutine that reads a connection polls the socket before it blocks.
	// RAYLINK_BUSY_POLL, such as `20us`; a negative duration disables it. The default is 50 µs. See
	// [tunnel.Config].
	BusyPoll time.Duration
	// HeapFloor is the minimum number of bytes that a process may allocate between two garbage
	// collections. Go's own minimum of 4 MiB makes a small process that serves many calls collect
	// continuously. RAYLINK_HEAP_FLOOR, in bytes; a negative number keeps Go's minimum. The default
	// is 16 MiB, unless GOGC or GOMEMLIMIT is set. It is implemented as a slice that is never
	// touched: heap profiles show it, but it uses no physical memory. Only Init applies it, since
	// it concerns the whole process.
	HeapFloor int

	// Machine describes the machine that this process is on, unless that has an agent.
	Machine MachineOptions

	// systemTypes are the node types that every process can host. A type of the program's own with
	// the same name takes precedence.
	systemTypes []NodeType
	// alone makes RAYLINK_BRAIN ignored. invalid are the environment variables that could not be
	// parsed, as errors.
	alone bool
	// listens is set if an address to listen on was given.
	listens bool
	invalid []error
}

// MachineOptions describe a machine of the system. What is not set is found out.
type MachineOptions struct {
	// Name is what users call the machine. The default is RAYLINK_MACHINE, or else its host name.
	Name string
	// Resources are amounts that replace what was found out, or add other resources, such as
	// `cpu=8,gpu=1,licence=2`. Memory is in bytes, or has a unit such as GiB. Without them a
	// machine has the processors, the memory and the GPUs that this process may use.
	Resources string
	// Labels are what nodes can require of the machine.
	Labels Labels
	// Programs are executables that are installed on the machine, by name: a node whose program has
	// such a name runs that file, instead of the one of its creator. Agents only use them.
	Programs map[string]string
}

// InheritedOptions are the options that a process launched for a node takes over from the process
// that launched it, whatever its own call of Init sets. The struct travels as a whole: a field that
// is added to it reaches every process.
type InheritedOptions struct {
	// Brain is the address (HOST:PORT) of the Brain to join. RAYLINK_BRAIN; raylink.Start reads
	// that only with [WithBrainFromEnvironment]. By default there is none: package raylink then
	// embeds a Brain, and package join returns an error.
	Brain string
	// Listen is the address (HOST:PORT) to listen on. RAYLINK_LISTEN. The default is 127.0.0.1:0, a
	// free port on loopback.
	Listen string
	// Advertise is the address under which other hosts reach the listener, where it differs from
	// the one that is bound, as behind NAT; port 0 stands for the bound port. Nodes in processes of
	// their own advertise the same host name. RAYLINK_ADVERTISE.
	Advertise string
	// PortRange are the ports, FIRST-LAST, to listen on where an address has port 0, for machines
	// behind firewalls: `7000-7100`. RAYLINK_PORT_RANGE. The default is any free port.
	PortRange string
	// TLS encrypts on loopback, too. RAYLINK_TLS=1. Beyond loopback connections are encrypted
	// unless Insecure is set. A process that joins uses TLS if its token is that of a system which
	// does.
	TLS bool
	// TLSCert, TLSKey and TLSCA are the PEM files of an organisation's own PKI: this host's
	// certificate with the intermediate ones, its private key, and the CAs that other hosts are
	// verified by, each of which must be valid for the address that it is reached at. They are
	// loaded again when they change. RAYLINK_TLS_CERT, RAYLINK_TLS_KEY, RAYLINK_TLS_CA. By default
	// Brain is the system's CA.
	TLSCert, TLSKey, TLSCA string
	// Token is what a process joins by. On loopback it is the shared secret of the system: both
	// sides of every connection must know it, and HTTP clients send it as `Authorization: Bearer
	// TOKEN`. RAYLINK_TOKEN. By default a system generates a token of 256 random bits when its
	// Brain starts, and the same user's other processes on the machine find it without
	// configuration. Choose one that is as hard to guess: any client that can connect can try
	// tokens. In a system with TLS and a CA of its own it is one of the form
	// `rl1.FINGERPRINT.SECRET`, which Brain makes (`raylink token`).
	Token string
	// Open disables the token, on loopback only: every user of the machine then has full access to
	// the system. RAYLINK_OPEN=1. A process that joins such a system must set it too.
	Open bool
	// Insecure allows unencrypted connections beyond loopback. RAYLINK_INSECURE=1.
	Insecure bool
	// Origins are the browser origins whose pages may call nodes of this process, such as
	// `https://app.example.com` or `http://localhost:5173`. The default is none. `*` allows every
	// origin, and requires a token. Origins that Brain's process allows are allowed at every host
	// that joins.
	Origins []string
	// Data is the directory that holds run directories. RAYLINK_DATA. The default is a `raylink`
	// directory in the user's state directory.
	Data string
	// HideErrors withholds the texts of plain errors and panics from callers, and what such an
	// error adds around a *connect.Error. They are logged here instead.
	HideErrors bool
	// InProcess creates nodes in their parent's process unless an option of the creation specifies
	// another placement.
	InProcess bool
	// Drain bounds how long stopping waits for running calls. The default is ten seconds.
	Drain time.Duration
	// StartTimeout bounds the time from the start of a node's process until it calls Init. It
	// includes what the program does before that, such as loading a model, but neither the wait for
	// other processes that are starting nor the node's set-up. RAYLINK_START_TIMEOUT, such as `1m`.
	// The default is ten seconds.
	StartTimeout time.Duration
	// Lease is the lease duration: an embedded Brain declares a host dead when it saw no traffic
	// from it for that long, and a call fails when it saw none from its node's host for that long.
	// The default is ten seconds.
	Lease time.Duration
	// MaxMessage bounds the size of one message, in bytes. The default is 64 MiB. It also
	// determines how much memory peers can make the process use: per tunnel
	// [tunnel.Config.PeerMemory]; and, over all HTTP connections together, four times MaxMessage
	// each for requests, for their decompressed form and for responses.
	MaxMessage int
}

// Option sets fields of [Options]. A [NodeType] is one.
type Option interface{ ApplyRuntime(o *Options) }

type optionFunc func(*Options)

// ApplyRuntime implements Option.
func (f optionFunc) ApplyRuntime(o *Options) { f(o) }

// WithBrain joins the Brain at an address (HOST:PORT). See [Options].Brain.
func WithBrain(address string) Option { return optionFunc(func(o *Options) { o.Brain = address }) }

// WithListen listens on an address (HOST:PORT). See [Options].Listen.
func WithListen(address string) Option { return optionFunc(func(o *Options) { o.Listen = address }) }

// WithAdvertise sets the address that other hosts connect to. See [Options].Advertise.
func WithAdvertise(address string) Option {
	return optionFunc(func(o *Options) { o.Advertise = address })
}

// WithToken sets the system's token. See [Options].Token.
func WithToken(token string) Option { return optionFunc(func(o *Options) { o.Token = token }) }

// WithOpen disables the token, on loopback. See [Options].Open.
func WithOpen() Option { return optionFunc(func(o *Options) { o.Open = true }) }

// WithInsecure allows unencrypted connections beyond loopback. See [Options].Insecure.
func WithInsecure() Option { return optionFunc(func(o *Options) { o.Insecure = true }) }

// WithTLS encrypts on loopback, too. See [Options].TLS.
func WithTLS() Option { return optionFunc(func(o *Options) { o.TLS = true }) }

// WithOwnPKI uses an organisation's certificates, as PEM files. See [Options].TLSCert.
func WithOwnPKI(cert, key, ca string) Option {
	return optionFunc(func(o *Options) { o.TLSCert, o.TLSKey, o.TLSCA = cert, key, ca })
}

// WithPortRange sets the ports to listen on, FIRST-LAST. See [Options].PortRange.
func WithPortRange(ports string) Option { return optionFunc(func(o *Options) { o.PortRange = ports }) }

// WithOrigins adds browser origins whose pages may call nodes. See [Options].Origins.
func WithOrigins(origins ...string) Option {
	return optionFunc(func(o *Options) { o.Origins = append(o.Origins, origins...) })
}

// WithCompression compresses HTTP responses to other machines. See [Options].Compression.
func WithCompression() Option { return optionFunc(func(o *Options) { o.Compression = true }) }

// WithData sets the directory that holds run directories. See [Options].Data.
func WithData(directory string) Option { return optionFunc(func(o *Options) { o.Data = directory }) }

// WithLogger sets the logger of the runtime. See [Options].Logger.
func WithLogger(logger *slog.Logger) Option {
	return optionFunc(func(o *Options) { o.Logger = logger })
}

// WithKeepRuns sets how many run directories are kept. See [Options].KeepRuns.
func WithKeepRuns(n int) Option { return optionFunc(func(o *Options) { o.KeepRuns = n }) }

// WithOutput sets the function that receives the output of nodes' processes. See [Options].Output.
func WithOutput(output func(path, line string)) Option {
	return optionFunc(func(o *Options) { o.Output = output })
}

// WithInterceptor adds interceptors of served calls. See [Options].Interceptors.
func WithInterceptor(interceptors ...Interceptor) Option {
	return optionFunc(func(o *Options) { o.Interceptors = append(o.Interceptors, interceptors...) })
}

// WithClientInterceptor adds interceptors of the calls that this process makes, such as [Retry].
// See [Options].ClientInterceptors.
func WithClientInterceptor(interceptors ...ClientInterceptor) Option {
	return optionFunc(func(o *Options) { o.ClientInterceptors = append(o.ClientInterceptors, interceptors...) })
}

// WithEventListener adds a listener for events. See [Options].Events.
func WithEventListener(listener EventListener) Option {
	return optionFunc(func(o *Options) { o.Events = append(o.Events, listener) })
}

// WithHiddenErrors withholds the texts of plain errors from callers. See [Options].HideErrors.
func WithHiddenErrors() Option { return optionFunc(func(o *Options) { o.HideErrors = true }) }

// WithInProcess creates nodes in their parent's process by default. See [Options].InProcess.
func WithInProcess() Option { return optionFunc(func(o *Options) { o.InProcess = true }) }

// WithDrain bounds how long stopping waits for running calls. See [Options].Drain.
func WithDrain(d time.Duration) Option { return optionFunc(func(o *Options) { o.Drain = d }) }

// WithStartTimeout bounds how long a node's process may take to call Init. See
// [Options].StartTimeout.
func WithStartTimeout(d time.Duration) Option {
	return optionFunc(func(o *Options) { o.StartTimeout = d })
}

// WithLease sets the lease duration. See [Options].Lease.
func WithLease(d time.Duration) Option { return optionFunc(func(o *Options) { o.Lease = d }) }

const defaultMaxMessage = 64 << 20

// WithMaxMessage bounds the size of one message, in bytes. See [Options].MaxMessage.
func WithMaxMessage(bytes int) Option { return optionFunc(func(o *Options) { o.MaxMessage = bytes }) }

// WithBusyPoll sets how long readers poll a socket before they block. See [Options].BusyPoll.
func WithBusyPoll(d time.Duration) Option { return optionFunc(func(o *Options) { o.BusyPoll = d }) }

// WithHeapFloor sets the minimum allocation between collections. See [Options].HeapFloor.
func WithHeapFloor(bytes int) Option { return optionFunc(func(o *Options) { o.HeapFloor = bytes }) }

// WithBrainFromEnvironment joins the Brain that RAYLINK_BRAIN names, if it is set. Without it
// raylink.Start ignores that variable and starts a system of its own.
func WithBrainFromEnvironment() Option { return optionFunc(func(o *Options) { o.alone = false }) }

// WithMachine describes the machine that this process is on. See [Options].Machine.
func WithMachine(m MachineOptions) Option { return optionFunc(func(o *Options) { o.Machine = m }) }

const defaultKeepRuns = 20

// tokenFromFile reads the token of RAYLINK_TOKEN_FILE if nothing else gives one.
func tokenFromFile(o *Options) {
	file := os.Getenv("RAYLINK_TOKEN_FILE")
	if file == "" || o.Token != "" || o.Open {
		return
	}
	var err error
	if o.Token, err = rundir.ReadToken(file); err != nil {
		o.invalid = append(o.invalid, connect.Errorf(connect.CodeInvalidArgument, "RAYLINK_TOKEN_FILE: %v", err))
	}
}

// newOptions is [hostapi.Functions].NewOptions.
func newOptions(opts ...Option) Options {
	var o Options
	for _, opt := range opts {
		opt.ApplyRuntime(&o)
	}
	given := o.Token != "" || o.TLS // these options override RAYLINK_OPEN, and WithOpen overrides RAYLINK_TOKEN
	for name, field := range map[string]*string{
		"RAYLINK_BRAIN": &o.Brain, "RAYLINK_LISTEN": &o.Listen, "RAYLINK_ADVERTISE": &o.Advertise, "RAYLINK_TOKEN": &o.Token, "RAYLINK_DATA": &o.Data,
		"RAYLINK_PORT_RANGE": &o.PortRange, "RAYLINK_TLS_CERT": &o.TLSCert, "RAYLINK_TLS_KEY": &o.TLSKey, "RAYLINK_TLS_CA": &o.TLSCA,
		"RAYLINK_RESOURCES": &o.Machine.Resources,
	} {
		if *field == "" && (field != &o.Token || !o.Open) && (field != &o.Brain || !o.alone) {
			*field = os.Getenv(name)
		}
	}
	tokenFromFile(&o)
	if o.BusyPoll == 0 {
		fromEnv(&o, "RAYLINK_BUSY_POLL", "a duration such as 20us", &o.BusyPoll, time.ParseDuration)
	}
	if o.StartTimeout == 0 {
		fromEnv(&o, "RAYLINK_START_TIMEOUT", "a positive duration such as 30s", &o.StartTimeout, positiveDuration)
	}
	if o.HeapFloor == 0 {
		fromEnv(&o, "RAYLINK_HEAP_FLOOR", "a number of bytes", &o.HeapFloor, strconv.Atoi)
	}
	if o.HeapFloor == 0 {
		o.HeapFloor = 16 << 20
	}
	flagsFromEnv(&o, given)
	if o.listens = o.Listen != ""; !o.listens {
		o.Listen = "127.0.0.1:0"
	}
	levels, err := logs.Parse(os.Getenv("RAYLINK_LOG"), slog.LevelWarn)
	if err != nil {
		o.invalid = append(o.invalid, connect.Errorf(connect.CodeInvalidArgument, "RAYLINK_LOG is %q: %v", os.Getenv("RAYLINK_LOG"), err))
	}
	if o.Logger == nil {
		o.Logger = slog.New(logs.NewHandler(os.Stderr, levels))
	}
	o.Logger = slog.New(logs.Bound(o.Logger.Handler()))
	if o.KeepRuns == 0 {
		fromEnv(&o, "RAYLINK_KEEP_RUNS", "a number of run directories", &o.KeepRuns, strconv.Atoi)
	}
	if o.KeepRuns == 0 {
		o.KeepRuns = defaultKeepRuns
	}
	if o.Drain == 0 {
		o.Drain = 10 * time.Second
	}
	if o.StartTimeout == 0 {
		o.StartTimeout = launch.HelloTimeout
	}
	if o.Lease == 0 {
		o.Lease = 10 * time.Second
	}
	if o.MaxMessage == 0 {
		o.MaxMessage = defaultMaxMessage
	}
	return o
}

// flagsFromEnv parses those that no option has set. given is set if an option rules out an open
// system.
func flagsFromEnv(o *Options, given bool) {
	for name, field := range map[string]*bool{"RAYLINK_INSECURE": &o.Insecure, "RAYLINK_TLS": &o.TLS, "RAYLINK_OPEN": &o.Open} {
		if !*field && (field != &o.Open || !given) {
			fromEnv(o, name, "1 or 0", field, strconv.ParseBool)
		}
	}
}

// fromEnv parses an environment variable into field if it is set.
func fromEnv[T any](o *Options, name, form string, field *T, parse func(string) (T, error)) {
	text := os.Getenv(name)
	if text == "" {
		return
	}
	value, err := parse(text)
	if err != nil {
		o.invalid = append(o.invalid, connect.Errorf(connect.CodeInvalidArgument, "%s is %q: it must be %s", name, text, form))
		return
	}
	*field = value
}

func positiveDuration(text string) (time.Duration, error) {
	d, err := time.ParseDuration(text)
	if err == nil && d <= 0 {
		err = errors.New("not positive")
	}
	return d, err
}

// check returns the errors found in the environment, and refuses contradictory options.
func (o *Options) check() error {
	if o.Token != "" && o.Open {
		return connect.NewError(connect.CodeInvalidArgument,
			"a token is given (WithToken, --token, RAYLINK_TOKEN) and the system is to be open (WithOpen, --open, RAYLINK_OPEN): which one is it?")
	}
	if n := len(o.TLSCert) * len(o.TLSKey) * len(o.TLSCA); n == 0 && o.TLSCert+o.TLSKey+o.TLSCA != "" {
		return connect.NewError(connect.CodeInvalidArgument,
			"an organisation's own PKI needs all of --tls-cert, --tls-key and --tls-ca (RAYLINK_TLS_CERT, RAYLINK_TLS_KEY, RAYLINK_TLS_CA)")
	}
	if o.usesTLS() && o.Insecure {
		return connect.NewError(connect.CodeInvalidArgument, "TLS is asked for (RAYLINK_TLS, RAYLINK_TLS_CERT), and --insecure (RAYLINK_INSECURE): which one is it?")
	}
	return errors.Join(o.invalid...)
}

// usesTLS reports whether the options ask for TLS.
func (o *Options) usesTLS() bool { return o.TLS || o.TLSCert != "" }

// String formats the addresses and directories that are set; of the token it shows only that there
// is one.
func (o InheritedOptions) String() string {
	var b strings.Builder
	for _, f := range [...][2]string{{"brain", o.Brain}, {"listen", o.Listen}, {"advertise", o.Advertise}, {"data", o.Data}} {
		if f[1] != "" {
			b.WriteString(f[0] + "=" + f[1] + " ")
		}
	}
	if o.Token != "" {
		b.WriteString("token=(set) ")
	}
	if o.Open {
		b.WriteString("open ")
	}
	return strings.TrimSpace(b.String())
}

// CreateOption configures the creation of a node.
type CreateOption func(*createOptions)

// createOptions are the result of applying create options.
type createOptions struct {
	request *nodev1.CreateRequest
	// each sets the configuration of the i-th node; nil if all nodes share one.
	each func(i int, config proto.Message) error
	// err is the first error of an option.
	err error
}

// WithAlias gives the node an additional name, unique in the system.
func WithAlias(alias string) CreateOption {
	return func(o *createOptions) { o.request.Alias = alias }
}

// OwnProcess runs the node in a process of its own. This is the default.
func OwnProcess() CreateOption {
	return func(o *createOptions) { o.request.Placement = nodev1.Placement_PLACEMENT_OWN_PROCESS }
}

// ParentProcess runs the node in its parent's process.
func ParentProcess() CreateOption {
	return func(o *createOptions) { o.request.Placement = nodev1.Placement_PLACEMENT_PARENT_PROCESS }
}

// AgentProcess runs each node in the process of the agent of its machine, which Brain selects as
// for nodes with processes of their own. That costs no process: a hundred such nodes are set up in
// the time in which a few processes start. They share the agent's memory and end with it, what they
// print is the agent's output, and they can't have GPUs, because CUDA_VISIBLE_DEVICES is a
// process's.
//
// The agent must be a process of the creator's program that was given the nodes' type (see package
// join); `raylink agent` is not. On a machine without an agent the nodes are in the process of the
// driver or Brain that keeps it.
func AgentProcess() CreateOption {
	return func(o *createOptions) { o.request.Placement = nodev1.Placement_PLACEMENT_AGENT_PROCESS }
}

// Here runs the node in the creating process, wherever its parent runs, which may be on another
// machine. The node ends with that process, and when its parent dies.
func Here() CreateOption {
	return func(o *createOptions) { o.request.Placement = nodev1.Placement_PLACEMENT_HERE }
}

// NoWait returns from the creation as soon as the node has its name, before it is set up. Calls
// wait for the set-up, and fail if it fails.
func NoWait() CreateOption {
	return func(o *createOptions) { o.request.NoWait = true }
}

// EachConfig gives each node of one creation a configuration of its own. set is called once for
// each node, where i is its index in the creation's result, with a copy of the configuration that
// the creation was given, which it modifies:
//
//	learners, err := CreateLearnerN(ctx, rt, 8, &demov1.LearnerConfig{Steps: 1000},
//		runtime.EachConfig(func(i int, cfg *demov1.LearnerConfig) { cfg.Seed = int64(i) }))
//
// C must be the type of the nodes' configuration; otherwise the creation fails with
// InvalidArgument.
func EachConfig[C proto.Message](set func(i int, config C)) CreateOption {
	return func(o *createOptions) {
		o.each = func(i int, config proto.Message) error {
			own, ok := config.(C)
			if !ok {
				var want C
				return connect.Errorf(connect.CodeInvalidArgument, "EachConfig sets a %T, and nodes of %q are configured by a %T",
					want, cmp.Or(o.request.GetType(), o.request.GetService()), config)
			}
			set(i, own)
			return nil
		}
	}
}

// WithAttribute publishes an attribute of the node from its creation on. See [SetAttribute].
func WithAttribute[T AttributeValue](key string, v T) CreateOption {
	return func(o *createOptions) {
		if o.request.Attributes == nil {
			o.request.Attributes = make(map[string]*nodev1.Value)
		}
		o.request.Attributes[key] = valueOf(v)
	}
}
