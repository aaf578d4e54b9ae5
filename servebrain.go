package raylink

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/raylink/raylink/brain"
	brainv1 "github.com/raylink/raylink/gen/raylink/brain/v1"
	psv1 "github.com/raylink/raylink/gen/raylink/ps/v1"
	storagev1 "github.com/raylink/raylink/gen/raylink/storage/v1"
	"github.com/raylink/raylink/internal/assemble"
	"github.com/raylink/raylink/internal/nodename"
	"github.com/raylink/raylink/runtime"
	"github.com/raylink/raylink/runtime/rundir"
)

// DefaultBrainAddress is the address at which [ServeBrain] listens by default, and the last at
// which the command line looks for a Brain.
const DefaultBrainAddress = "127.0.0.1:6800"

// BrainOptions configure a Brain that has a process of its own. A field that is not set is read
// from its environment variable, if it has one, or has its default.
type BrainOptions struct {
	// Data is the directory of everything that Brain stores: its registry in the folder `brain`,
	// the logs of its own nodes in `runs`, the data of `storage-0` in `storage`. RAYLINK_DATA. By
	// default a `raylink` folder in the user's state directory. One Brain at a time can use it.
	Data string
	// Listen is the address to listen on. RAYLINK_LISTEN. By default [DefaultBrainAddress].
	Listen string
	// Advertise is the address at which others reach Brain, if it differs. RAYLINK_ADVERTISE.
	Advertise string
	// Token is the secret that both sides of every connection must know. RAYLINK_TOKEN. By default
	// Brain makes one and keeps it with its data; see [Options].Token.
	Token string
	// TokenFile is a file whose first line is the token.
	TokenFile string
	// Open makes a system without a token, see [Options].Open. RAYLINK_OPEN=1.
	Open bool
	// Insecure allows unencrypted connections beyond loopback. RAYLINK_INSECURE=1.
	Insecure bool
	// TLS encrypts on loopback, too, see [Options].TLS. RAYLINK_TLS=1.
	TLS bool
	// TLSCert, TLSKey and TLSCA are the files of an organisation's own PKI, see [Options].TLSCert.
	// RAYLINK_TLS_CERT, RAYLINK_TLS_KEY, RAYLINK_TLS_CA. By default Brain makes a CA in the folder
	// `pki` of Data.
	TLSCert, TLSKey, TLSCA string
	// PortRange are the ports to listen on where an address has port 0, see [Options].PortRange.
	// RAYLINK_PORT_RANGE.
	PortRange string
	// Origins are the browser origins whose pages may call nodes, here and at the hosts that join.
	// By default there are none.
	Origins []string
	// Compression compresses HTTP responses, here and at the hosts that join, see
	// [Options].Compression.
	Compression bool
	// Lease is how long a host may be silent before it is declared dead. By default ten seconds.
	Lease time.Duration
	// Parameters configures the system's parameter server, `ps-0`: how large parameters may be and
	// how many versions machines keep. nil means each field's default. It must not be modified
	// while ServeBrain runs.
	//
	// If `ps-0` has outlived an earlier Brain on the same data, it is not restarted: it keeps its
	// configuration, and its next incarnation gets this one.
	Parameters *psv1.CaptainConfig
	// Storage configures the system's storage, `storage-0`: how much it holds, and what its
	// acknowledged writes survive, by default the death of its process
	// ([storagev1.Durability_DURABILITY_ASYNC]). nil means each field's default. It is in effect as
	// Parameters are, and must not be modified while ServeBrain runs.
	Storage *storagev1.StorageConfig
	// Ephemeral has the system's own nodes live in this process, and so end with it whatever ends
	// it. By default each has a process of its own, which outlives a Brain that dies and joins the
	// next one.
	Ephemeral bool
	// Logger gets Brain's log records. By default warnings and errors go to standard error.
	Logger *slog.Logger
	// Serving is called once, when Brain serves at the address. tokenFile is the file with the
	// token that Brain has made; it is "" if the token was given or Brain is open.
	Serving func(address, data, tokenFile string)
	// Joining is called just before Serving in a system that uses TLS with a CA of its own, with
	// the token by which other machines join.
	Joining func(address, token string)
}

// ServeBrain runs a Brain that keeps its registry on disk, for other processes to join. It returns
// nil once ctx has ended and Brain has shut down gracefully, or the error that ended it. Restarted
// with the same data, after any kind of end, it knows all nodes again; hosts reattach by
// themselves, and none is declared dead because Brain was away.
//
// `raylink brain` calls it. Brain's own nodes have processes of their own, which run this program
// again: there, ServeBrain serves the node and never returns.
func ServeBrain(ctx context.Context, o BrainOptions) error {
	serving := o.Serving
	if serving == nil {
		serving = func(string, string, string) {}
	}
	joining := o.Joining
	if joining == nil {
		joining = func(string, string) {}
	}
	ready := func(address, data, tokenFile, joinToken string) {
		if joinToken != "" {
			joining(address, joinToken)
		}
		serving(address, data, tokenFile)
	}
	embed, nodes := durable(o.Parameters, o.Storage)
	if o.Ephemeral {
		embed.StartSystemNodes = nodes.StartInProcess
	}
	return assemble.ServeBrain(ctx, embed, o.runtime, ready)
}

// runtime returns the options of Brain's own host.
func (o *BrainOptions) runtime() (runtime.Options, error) {
	listen := o.Listen
	if listen == "" && os.Getenv("RAYLINK_LISTEN") == "" {
		listen = DefaultBrainAddress
	}
	token := o.Token
	if o.TokenFile != "" {
		if token != "" {
			return runtime.Options{}, fmt.Errorf("both a token and a token file (%s) are given; give only one", o.TokenFile)
		}
		var err error
		if token, err = rundir.ReadToken(o.TokenFile); err != nil {
			return runtime.Options{}, err
		}
	}
	opts := []Option{WithData(o.Data), WithListen(listen), WithAdvertise(o.Advertise), WithToken(token), WithOrigins(o.Origins...)}
	opts = append(opts, WithOwnPKI(o.TLSCert, o.TLSKey, o.TLSCA), WithPortRange(o.PortRange))
	if o.TLS {
		opts = append(opts, WithTLS())
	}
	if o.Open {
		opts = append(opts, WithOpen())
	}
	if o.Insecure {
		opts = append(opts, WithInsecure())
	}
	if o.Compression {
		opts = append(opts, runtime.WithCompression())
	}
	if o.Lease != 0 {
		opts = append(opts, WithLease(o.Lease))
	}
	if o.Logger != nil {
		opts = append(opts, WithLogger(o.Logger))
	}
	return assemble.NewOptions(opts...), nil
}

// durable opens a Brain that keeps its registry on disk, and starts the nodes that every system
// has.
func durable(captain *psv1.CaptainConfig, storage *storagev1.StorageConfig) (*assemble.Embed, assemble.Configuration) {
	stored := new(storagev1.StorageConfig)
	if storage != nil {
		stored = proto.CloneOf(storage)
	}
	if stored.GetDurability() == storagev1.Durability_DURABILITY_UNSPECIFIED {
		stored.Durability = storagev1.Durability_DURABILITY_ASYNC
	}
	nodes := assemble.Configuration{Storage: stored, Captain: captain}
	return &assemble.Embed{
		Open: func(options runtime.Options, data string) (assemble.Brain, error) {
			return openBrain(brain.Options{Dir: filepath.Join(data, "brain")}, options)
		},
		Token:            rundir.KeptToken,
		PKI:              func(data string) string { return filepath.Join(data, "pki") },
		Log:              nodename.RootPath,
		StartSystemNodes: nodes.StartSupervised,
	}, nodes
}

// openBrain opens a Brain in this process.
func openBrain(o brain.Options, options runtime.Options) (assemble.Brain, error) {
	o.Lease = options.Lease
	o.Web = &brainv1.WebPolicy{Origins: options.Origins, Compression: options.Compression}
	o.Logger = options.Logger.With(slog.String("part", "brain"))
	b, err := brain.Open(o)
	if err != nil {
		return nil, err
	}
	return b, nil
}
