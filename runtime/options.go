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
)

// Options are all that can be said of a runtime. An Option sets a field; a field that no option
// sets is read from the environment, where one is named; else the default holds.
type Options struct {
	// Types are the node types that this process can host. Their names must differ.
	Types []NodeType
	// SystemTypes are those that it can host although the program gave none: they yield where names
	// meet. It is for the front door.
	SystemTypes []NodeType
	// Brain is the address (HOST:PORT) of the Brain to join. RAYLINK_BRAIN, but for raylink.Start,
	// see [WithBrainFromEnvironment]. By default none: then the front door embeds one, or, on a
	// lean join, refuses.
	Brain string
	// Listen is the address that the process's listener binds. RAYLINK_LISTEN. By default
	// 127.0.0.1:0, a free port on loopback.
	Listen string
	// Advertise is the address that others reach the listener by, where it can't know that itself;
	// port 0 stands for the one that is bound. Nodes in processes of their own advertise the same
	// host. RAYLINK_ADVERTISE.
	Advertise string
	// Token is the secret that both sides of every connection must know; HTTP clients send it as
	// `Authorization: Bearer TOKEN`. RAYLINK_TOKEN. By default a system makes one of 256 random
	// bits when its Brain starts, and other processes of the same user on the same machine find it
	// by themselves. One of your own should be as random, for who can connect can try guesses.
	Token string
	// Open asks for no token, on loopback: every user of the machine can then do everything in the
	// system. RAYLINK_OPEN=1. A process that joins such a system must say so too.
	Open bool
	// Insecure allows an address beyond loopback although nothing is encrypted. RAYLINK_INSECURE=1.
	Insecure bool
	// Origins are the browser origins whose pages may call nodes here, such as `https://app.example.com` or `http://localhost:5173`; by
	// default none. `*` stands for every origin, and needs a token. Those that Brain's own process allows are allowed at every host that joins.
	Origins []string
	// Compression compresses responses over HTTP with gzip, for clients on other machines that ask
	// for it and where it makes a message smaller. By default it is off: on a fast network it costs
	// more time than it saves. Requests may be compressed whatever this says. What Brain's own
	// process says holds for every host that joins.
	Compression bool
	// Data is the directory that keeps run directories. RAYLINK_DATA. By default a `raylink` folder
	// in the user's state directory.
	Data string
	// Logger gets what the runtime has to say, beside the file `driver.log` in the run directory.
	// By default warnings and errors go to standard error; RAYLINK_LOG says what else: a level
	// (debug, info, warn, error), levels for parts (`warn,tunnel=debug`; the parts are brain, host,
	// session and tunnel), or both. It holds for the file too, which has info otherwise. A record
	// waits for its handler for 200 ms at most; after that up to 256 records wait in the background
	// until the handler returns, and those beyond are counted.
	Logger *slog.Logger
	// KeepRuns is how many run directories are kept in Data: older ones, if they are not marked by
	// a file `keep` and no process uses them, are removed when a run begins. RAYLINK_KEEP_RUNS. By
	// default 20; negative for all.
	KeepRuns int
	// Output gets each line that a node's process writes to its standard output or error. By
	// default it is written to this process's standard error, after the node's path. It is called
	// from one goroutine at a time for each node. While it blocks, what the process prints waits,
	// but for a second at most: then lines go to the process's log in the run directory alone until
	// it returns, a warning says so, and Close returns an error if it still has not.
	Output func(path, line string)
	// Interceptors wrap the serving of every call, the first outermost.
	Interceptors []Interceptor
	// HideErrors keeps the texts of plain errors and panics from callers, what such an error says
	// around a *connect.Error included: they are logged here instead.
	HideErrors bool
	// InProcess creates nodes in their parent's process where no option of the creation says
	// otherwise.
	InProcess bool
	// Drain bounds how long stopping waits for calls that run. By default ten seconds.
	Drain time.Duration
	// StartTimeout bounds how long a node's process may take from its start until it calls Init:
	// what the program does before that, such as loading a model, counts; waiting for other
	// processes to start and the node's set-up don't. RAYLINK_START_TIMEOUT, such as `1m`. By
	// default ten seconds.
	StartTimeout time.Duration
	// Lease is how long an embedded Brain waits for a sign of life of a silent host before it
	// declares it dead, and how long a call waits for one of the node's host. By default ten
	// seconds.
	Lease time.Duration
	// MaxMessage bounds one message, in bytes. By default 64 MiB. By it follows what the process
	// holds for others at the most: for each tunnel what [tunnel.Config.PeerMemory] says, and for
	// HTTP requests, what they are decompressed to, and responses four times as much each, all
	// connections together.
	MaxMessage int
	// BusyPoll is how long a goroutine that reads a connection looks for what may come at once,
	// before it lets itself be put to sleep. RAYLINK_BUSY_POLL, such as `20us`; negative for never.
	// By default 50 µs. See [tunnel.Config].
	BusyPoll time.Duration
	// HeapFloor is how many bytes a process may allocate between two collections at the least: Go's
	// own floor of 4 MiB makes small processes that serve many calls collect all the time.
	// RAYLINK_HEAP_FLOOR, in bytes; negative for Go's own. By default 16 MiB, where neither GOGC
	// nor GOMEMLIMIT is set. It is a slice that nobody touches, so heap profiles show it and no
	// memory is spent on it. Only Init does this: it is the process's.
	HeapFloor int

	// invalid is what of the environment could not be understood.
	// alone says that RAYLINK_BRAIN is not looked at.
	alone   bool
	invalid []error
}

// Option sets what [Options] describe. A [NodeType] is one.
type Option interface{ ApplyRuntime(o *Options) }

type optionFunc func(*Options)

// ApplyRuntime implements Option.
func (f optionFunc) ApplyRuntime(o *Options) { f(o) }

// WithBrain joins the Brain at an address, see [Options].Brain.
func WithBrain(address string) Option { return optionFunc(func(o *Options) { o.Brain = address }) }

// WithListen binds an address, see [Options].Listen.
func WithListen(address string) Option { return optionFunc(func(o *Options) { o.Listen = address }) }

// WithAdvertise tells others an address, see [Options].Advertise.
func WithAdvertise(address string) Option {
	return optionFunc(func(o *Options) { o.Advertise = address })
}

// WithToken gives the token, see [Options].Token.
func WithToken(token string) Option { return optionFunc(func(o *Options) { o.Token = token }) }

// WithOpen asks for no token, see [Options].Open.
func WithOpen() Option { return optionFunc(func(o *Options) { o.Open = true }) }

// WithInsecure allows plain connections beyond loopback, see [Options].Insecure.
func WithInsecure() Option { return optionFunc(func(o *Options) { o.Insecure = true }) }

// WithOrigins answers browsers, see [Options].Origins.
func WithOrigins(origins ...string) Option {
	return optionFunc(func(o *Options) { o.Origins = append(o.Origins, origins...) })
}

// WithCompression compresses responses for clients on other machines, see [Options].Compression.
func WithCompression() Option { return optionFunc(func(o *Options) { o.Compression = true }) }

// WithData keeps run directories in a directory, see [Options].Data.
func WithData(directory string) Option { return optionFunc(func(o *Options) { o.Data = directory }) }

// WithLogger logs elsewhere, see [Options].Logger.
func WithLogger(logger *slog.Logger) Option {
	return optionFunc(func(o *Options) { o.Logger = logger })
}

// WithKeepRuns keeps that many run directories, see [Options].KeepRuns.
func WithKeepRuns(n int) Option { return optionFunc(func(o *Options) { o.KeepRuns = n }) }

// WithOutput takes what the nodes' processes write, see [Options].Output.
func WithOutput(output func(path, line string)) Option {
	return optionFunc(func(o *Options) { o.Output = output })
}

// WithInterceptor wraps the serving of every call, see [Options].Interceptors.
func WithInterceptor(interceptors ...Interceptor) Option {
	return optionFunc(func(o *Options) { o.Interceptors = append(o.Interceptors, interceptors...) })
}

// WithHiddenErrors keeps the texts of plain errors here, see [Options].HideErrors.
func WithHiddenErrors() Option { return optionFunc(func(o *Options) { o.HideErrors = true }) }

// WithInProcess creates nodes in their parent's process, see [Options].InProcess.
func WithInProcess() Option { return optionFunc(func(o *Options) { o.InProcess = true }) }

// WithDrain bounds how long stopping takes, see [Options].Drain.
func WithDrain(d time.Duration) Option { return optionFunc(func(o *Options) { o.Drain = d }) }

// WithStartTimeout bounds how long a node's process may take to call Init, see
// [Options].StartTimeout.
func WithStartTimeout(d time.Duration) Option {
	return optionFunc(func(o *Options) { o.StartTimeout = d })
}

// WithLease says how long silence is borne, see [Options].Lease.
func WithLease(d time.Duration) Option { return optionFunc(func(o *Options) { o.Lease = d }) }

const defaultMaxMessage = 64 << 20

// WithMaxMessage bounds one message, see [Options].MaxMessage.
func WithMaxMessage(bytes int) Option { return optionFunc(func(o *Options) { o.MaxMessage = bytes }) }

// WithBusyPoll says how long readers look before they sleep, see [Options].BusyPoll.
func WithBusyPoll(d time.Duration) Option { return optionFunc(func(o *Options) { o.BusyPoll = d }) }

// WithHeapFloor makes collections rarer in small processes, see [Options].HeapFloor.
func WithHeapFloor(bytes int) Option { return optionFunc(func(o *Options) { o.HeapFloor = bytes }) }

// WithBrainFromEnvironment joins the Brain that RAYLINK_BRAIN names, if it names one, where a
// runtime would otherwise make a system of its own whatever the environment says, as raylink.Start
// does.
func WithBrainFromEnvironment() Option { return optionFunc(func(o *Options) { o.alone = false }) }

// Alone makes a system of its own unless an option names a Brain to join. It is for the front door.
func Alone() Option { return optionFunc(func(o *Options) { o.alone = true }) }

// defaultKeepRuns is how many run directories are kept.
const defaultKeepRuns = 20

// NewOptions applies options, then the environment, then the defaults.
func NewOptions(opts ...Option) Options {
	var o Options
	for _, opt := range opts {
		opt.ApplyRuntime(&o)
	}
	given := o.Token != "" // then the environment does not open the system, nor the other way round
	for name, field := range map[string]*string{
		"RAYLINK_BRAIN": &o.Brain, "RAYLINK_LISTEN": &o.Listen, "RAYLINK_ADVERTISE": &o.Advertise, "RAYLINK_TOKEN": &o.Token, "RAYLINK_DATA": &o.Data,
	} {
		if *field == "" && (field != &o.Token || !o.Open) && (field != &o.Brain || !o.alone) {
			*field = os.Getenv(name)
		}
	}
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
	if !o.Insecure {
		fromEnv(&o, "RAYLINK_INSECURE", "1 or 0", &o.Insecure, strconv.ParseBool)
	}
	if !o.Open && !given {
		fromEnv(&o, "RAYLINK_OPEN", "1 or 0", &o.Open, strconv.ParseBool)
	}
	if o.Listen == "" {
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

// fromEnv reads a variable of the environment where it is set.
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

// check finds what can't be meant.
func (o *Options) check() error {
	if o.Token != "" && o.Open {
		return connect.NewError(connect.CodeInvalidArgument,
			"a token is given (WithToken, --token, RAYLINK_TOKEN) and the system is to be open (WithOpen, --open, RAYLINK_OPEN): which one is it?")
	}
	return errors.Join(o.invalid...)
}

// String shows the options that matter to a person, secrets left out.
func (o *Options) String() string {
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

// CreateOption says how a node is created.
type CreateOption func(*createOptions)

// createOptions are what create options set.
type createOptions struct {
	request *nodev1.CreateRequest
	// each sets the configuration of one node; nil where all have the same.
	each func(i int, config proto.Message) error
}

// WithAlias gives the node an extra name, unique in the system.
func WithAlias(alias string) CreateOption {
	return func(o *createOptions) { o.request.Alias = alias }
}

// OwnProcess gives the node a process of its own. It is the default.
func OwnProcess() CreateOption {
	return func(o *createOptions) { o.request.Placement = nodev1.Placement_PLACEMENT_OWN_PROCESS }
}

// ParentProcess puts the node into its parent's process.
func ParentProcess() CreateOption {
	return func(o *createOptions) { o.request.Placement = nodev1.Placement_PLACEMENT_PARENT_PROCESS }
}

// Here puts the node into the process that creates it, wherever its parent lives: on another
// machine, for example. The node ends with that process, and when its parent dies.
func Here() CreateOption {
	return func(o *createOptions) { o.request.Placement = nodev1.Placement_PLACEMENT_HERE }
}

// NoWait makes the creation return as soon as the node has its name, before it is set up. Calls
// wait for the set-up, and fail if it does.
func NoWait() CreateOption {
	return func(o *createOptions) { o.request.NoWait = true }
}

// EachConfig gives each of the nodes that one creation makes a configuration of its own. set is
// called for each node, i counting from 0 in the order in which the creation returns them, with a
// copy of the configuration that the creation was given, and changes it:
//
//	learners, err := CreateLearnerN(ctx, rt, 8, &demov1.LearnerConfig{Steps: 1000},
//		runtime.EachConfig(func(i int, cfg *demov1.LearnerConfig) { cfg.Seed = int64(i) }))
//
// C is the type of the nodes' configuration; a creation of nodes that are configured by another
// fails.
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

// WithAttribute gives the node an attribute from the beginning.
func WithAttribute[T AttributeValue](key string, v T) CreateOption {
	return func(o *createOptions) {
		if o.request.Attributes == nil {
			o.request.Attributes = make(map[string]*nodev1.Value)
		}
		o.request.Attributes[key] = valueOf(v)
	}
}
