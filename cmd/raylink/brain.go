package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/raylink/raylink"
	psv1 "github.com/raylink/raylink/gen/raylink/ps/v1"
	storagev1 "github.com/raylink/raylink/gen/raylink/storage/v1"
)

func (a *app) brainCommand() *cobra.Command {
	var o raylink.BrainOptions
	var captain psv1.CaptainConfig
	var store storagev1.StorageConfig
	var attached bool
	var from string
	cmd := &cobra.Command{
		Use:   "brain",
		Short: "Run a Brain until it is interrupted",
		Long: `brain runs a system's registry in a process of its own, and is a gateway to all nodes. Programs join it by
RAYLINK_BRAIN, which names its address.

Once it serves, it prints one line with its address. The token that callers need is given by
--token-file or RAYLINK_TOKEN; else Brain makes one and keeps it with its data, and programs of the
same user find it by themselves (see raylink token).

It shuts down gracefully when it is interrupted or terminated; a second signal ends it at once.
Beyond loopback everything is encrypted by TLS: at its first start Brain makes a CA in --data, and prints
the token by which other machines join. --tls-cert uses certificates of your own instead, and --insecure
none.

Restarted with the same --data, after any kind of end, it still knows every node, and programs that
had joined it reconnect by themselves if its address is the same.

The flags that begin with --ps configure the parameter server ps-0, and those that begin with
--storage the storage storage-0. If one of these nodes has outlived the last Brain it is not
restarted: it keeps its configuration, and gets the new one when it starts again.`,
		Args: between(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if a.token != "" && a.tokenFile != "" {
				return errTwoTokens()
			}
			if a.open && a.token+a.tokenFile != "" {
				return errOpenAndToken()
			}
			o.Token, o.TokenFile, o.Open = a.token, a.tokenFile, a.open
			o.TLSCert, o.TLSKey, o.TLSCA = a.tlsCert, a.tlsKey, a.tlsCA
			o.Parameters, o.Storage = &captain, &store
			o.Serving = a.serving
			o.Joining = a.joining
			ctx := cmd.Context()
			if attached {
				var detach func()
				var err error
				if ctx, detach, err = a.attach(ctx); err != nil {
					return err
				}
				defer detach()
				o.Token, o.Ephemeral = a.token, true
			}
			if err := copyCA(from, o.Data); err != nil {
				return err
			}
			if err := raylink.ServeBrain(ctx, o); err != nil {
				return &localError{err}
			}
			return nil
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&o.Data, "data", "", "the directory of registry, token and logs (RAYLINK_DATA; default: `raylink` in the user's state directory)")
	flags.StringVar(&o.Listen, "listen", "", "the address to listen on (RAYLINK_LISTEN; default "+raylink.DefaultBrainAddress+")")
	flags.StringVar(&o.Advertise, "advertise", "", "the address that others connect to, if it differs from --listen (RAYLINK_ADVERTISE)")
	flags.BoolVar(&o.Insecure, "insecure", false, "listen beyond loopback without TLS, where the network is trusted (RAYLINK_INSECURE=1)")
	flags.BoolVar(&o.TLS, "tls", false, "use TLS on loopback, too (RAYLINK_TLS=1)")
	flags.StringVar(&o.PortRange, "port-range", "", "the ports for Brain's own nodes, and for Brain with port 0, e.g. 7000-7100 (RAYLINK_PORT_RANGE)")
	flags.StringSliceVar(&o.Origins, "origin", nil, "a browser origin whose pages may call, here and at the hosts that join; may be repeated; * for every one")
	flags.BoolVar(&o.Compression, "compress", false, "gzip responses over HTTP for clients on other machines that ask for it, here and at the hosts that join")
	flags.DurationVar(&o.Lease, "lease", 0, "how long a host may be silent before it is declared dead (default 10s)")
	flags.StringVar(&from, "pki", "", "the directory of the CA and the tokens for the first start, such as a mounted Secret, see raylink ca make")
	a.attachedFlag(cmd, &attached)
	captainFlags(cmd, &captain)
	storageFlags(cmd, &store)
	a.tokenFlags(cmd)
	return cmd
}

// captainFlags adds the flags that configure the parameter server.
func captainFlags(cmd *cobra.Command, config *psv1.CaptainConfig) {
	flags := cmd.Flags()
	flags.Var((*byteSize)(&config.MaxBytes), "ps-max-bytes", "the maximum size of one version's parameters, e.g. 64MiB (default 16GiB)")
	flags.Var((*byteSize)(&config.MaxTotalBytes), "ps-max-total-bytes", "the maximum size of all files of a machine together (default: none)")
	flags.Uint32Var(&config.HeldVersions, "ps-held-versions", 0, "how many versions of a tag before the newest each machine keeps if there is room (default 2)")
	flags.Uint32Var(&config.MaxTags, "ps-max-tags", 0, "the maximum number of tags (default 1024)")
	flags.Uint32Var(&config.MaxOfficers, "ps-max-officers", 0, "on how many machines besides ps-0's own there are copies (default 1024)")
}

// storageFlags adds the flags that configure the storage.
func storageFlags(cmd *cobra.Command, config *storagev1.StorageConfig) {
	flags := cmd.Flags()
	flags.Var((*durabilityFlag)(&config.Durability), "storage-durability",
		"what acknowledged writes to storage-0 survive: memory (nothing), async (the death of its process) or sync (a loss of power) (default async)")
	flags.Var((*directoryFlag)(&config.Directory), "storage-directory", "the directory of storage-0's data (default: in the folder storage of --data)")
	flags.Uint64Var(&config.MaxKeys, "storage-max-keys", 0, "the maximum number of keys (default 1048576)")
	flags.Var((*byteSize)(&config.MaxBytes), "storage-max-bytes", "the maximum of the memory that all entries take (default 1GiB)")
	flags.Uint64Var(&config.History, "storage-history", 0, "how many of the latest changes watchers can resume from (default 65536)")
	flags.Var((*byteSize)(&config.HistoryBytes), "storage-history-bytes", "the maximum of the memory that these changes take (default 64MiB)")
}

// durabilityFlag is a flag's value.
type durabilityFlag storagev1.Durability

// durabilities are the values of a flag.
func durabilities() map[string]storagev1.Durability {
	return map[string]storagev1.Durability{
		"memory": storagev1.Durability_DURABILITY_MEMORY,
		"async":  storagev1.Durability_DURABILITY_ASYNC,
		"sync":   storagev1.Durability_DURABILITY_SYNC,
	}
}

// String returns the name; "" for the default.
func (d *durabilityFlag) String() string {
	for name, value := range durabilities() {
		if value == storagev1.Durability(*d) {
			return name
		}
	}
	return ""
}

// Type describes the value in the help.
func (d *durabilityFlag) Type() string { return "durability" }

// Set parses a name.
func (d *durabilityFlag) Set(text string) error {
	value, ok := durabilities()[text]
	if !ok {
		return fmt.Errorf("%q is no durability: write memory, async or sync", text)
	}
	*d = durabilityFlag(value)
	return nil
}

// directoryFlag is a flag's value: an absolute path.
type directoryFlag string

// String returns the path.
func (d *directoryFlag) String() string { return string(*d) }

// Type describes the value in the help.
func (d *directoryFlag) Type() string { return "directory" }

// Set makes a path absolute.
func (d *directoryFlag) Set(text string) error {
	path, err := filepath.Abs(text)
	*d = directoryFlag(path)
	return err
}

// serving prints the line which announces that Brain serves.
func (a *app) serving(address, data, tokenFile string) {
	if a.output == outputJSON {
		fields := map[string]any{"address": address, "data": data, "pid": os.Getpid()}
		if tokenFile != "" {
			fields["token_file"] = tokenFile
		}
		line, err := json.Marshal(fields)
		if err == nil {
			_, _ = fmt.Fprintf(a.out, "%s\n", line) // the reader may have closed the pipe
		}
		return
	}
	token := ""
	if tokenFile != "" {
		token = ", token in " + tokenFile
	}
	text := fmt.Sprintf("Brain serves at %s (data in %s%s): join it with RAYLINK_BRAIN=%s\n", address, data, token, address)
	if a.hasJoining {
		text = fmt.Sprintf("On this machine: data in %s%s\n", data, token)
	}
	_, _ = fmt.Fprint(a.out, text) // as above
}

// joining prints the lines which announce that Brain serves, and how to join it from another
// machine, in a system that uses TLS with a CA of its own. The token is for people who read a
// terminal: in JSON it is not written.
func (a *app) joining(address, token string) {
	if a.output == outputJSON {
		return
	}
	a.hasJoining = true
	const text = "Brain serves at %s (TLS). To join from another machine:\n  RAYLINK_BRAIN=%s RAYLINK_TOKEN=%s  raylink agent\n"
	_, _ = fmt.Fprintf(a.out, text, address, address, token) // the reader may have closed the pipe
}
