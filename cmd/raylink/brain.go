package main

import (
	"encoding/json"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/raylink/raylink"
	psv1 "github.com/raylink/raylink/gen/raylink/ps/v1"
)

func (a *app) brainCommand() *cobra.Command {
	var o raylink.BrainOptions
	var captain psv1.CaptainConfig
	cmd := &cobra.Command{
		Use:   "brain",
		Short: "Run a Brain until it is interrupted",
		Long: `brain runs a system's registry in a process of its own, and is a gateway to all nodes. Programs join it by
RAYLINK_BRAIN, which names its address.

Once it serves, it prints one line with its address. The token that callers need is given by
--token-file or RAYLINK_TOKEN; else Brain makes one and keeps it with its data, and programs of the
same user find it by themselves (see raylink token).

It shuts down gracefully when it is interrupted or terminated; a second signal ends it at once.
Restarted with the same --data, after any kind of end, it still knows every node, and programs that
had joined it reconnect by themselves if its address is the same.

The flags that begin with --ps configure the parameter server ps-0. If ps-0 has outlived the last
Brain it is not restarted: it keeps its configuration, and gets the new one when it starts again.`,
		Args: between(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if a.token != "" && a.tokenFile != "" {
				return errTwoTokens()
			}
			if a.open && a.token+a.tokenFile != "" {
				return errOpenAndToken()
			}
			o.Token, o.TokenFile, o.Open = a.token, a.tokenFile, a.open
			o.Parameters = &captain
			o.Serving = a.serving
			if err := raylink.ServeBrain(cmd.Context(), o); err != nil {
				return &localError{err}
			}
			return nil
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&o.Data, "data", "", "the directory of registry, token and logs (RAYLINK_DATA; default: `raylink` in the user's state directory)")
	flags.StringVar(&o.Listen, "listen", "", "the address to listen on (RAYLINK_LISTEN; default "+raylink.DefaultBrainAddress+")")
	flags.StringVar(&o.Advertise, "advertise", "", "the address that others connect to, if it differs from --listen (RAYLINK_ADVERTISE)")
	flags.BoolVar(&o.Insecure, "insecure", false, "listen beyond loopback although nothing is encrypted (RAYLINK_INSECURE=1)")
	flags.StringSliceVar(&o.Origins, "origin", nil, "a browser origin whose pages may call, here and at the hosts that join; may be repeated; * for every one")
	flags.BoolVar(&o.Compression, "compress", false, "gzip responses over HTTP for clients on other machines that ask for it, here and at the hosts that join")
	flags.DurationVar(&o.Lease, "lease", 0, "how long a host may be silent before it is declared dead (default 10s)")
	captainFlags(cmd, &captain)
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
	_, _ = fmt.Fprintf(a.out, "Brain serves at %s (data in %s%s): join it with RAYLINK_BRAIN=%s\n", address, data, token, address) // as above
}
