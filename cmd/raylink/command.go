package main

import (
	"cmp"
	"context"
	"io"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/raylink/raylink"
	"github.com/raylink/raylink/runtime/rundir"
)

// app is one run of the program: its standard streams, and the flags that all commands share.
type app struct {
	in       io.Reader
	out, err io.Writer

	brain     string
	token     string
	tokenFile string
	open      bool
	tlsCert   string
	tlsKey    string
	tlsCA     string
	output    outputForm
	// hasJoining is set when Brain has announced itself by how to join it.
	hasJoining bool
}

// outputForm is the format of results and errors.
type outputForm string

const (
	outputText outputForm = "text"
	outputJSON outputForm = "json"
)

// String implements pflag.Value.
func (f *outputForm) String() string { return string(*f) }

// Type implements pflag.Value.
func (f *outputForm) Type() string { return "form" }

// Set implements pflag.Value.
func (f *outputForm) Set(s string) error {
	switch form := outputForm(s); form {
	case outputText, outputJSON:
		*f = form
		return nil
	}
	return usagef("the output format is `text` or `json`, not %q", s)
}

// run runs a command line and returns the exit code.
func (a *app) run(ctx context.Context, args []string) int {
	a.output = outputText
	root := a.command()
	root.SetArgs(args)
	root.SetIn(a.in)
	root.SetOut(a.out)
	root.SetErr(a.err)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return exitOK
	}
	return a.writeError(err)
}

func (a *app) command() *cobra.Command {
	root := &cobra.Command{
		Use:   "raylink",
		Short: "Run a Brain, look at a system's nodes, and call them",
		Long: `raylink runs a Brain, shows the nodes of a system, calls them, reads and writes their storage, moves parameters, and
shows replays.

Brain's address is --brain, else RAYLINK_BRAIN, else that of the only Brain this user runs on this
machine, else ` + raylink.DefaultBrainAddress + `. The system's token is --token-file, --token (which other users of this
machine may see) or RAYLINK_TOKEN, else the one that Brain has made for this user.

Exit codes: 0 success; 1 local failure; 2 wrong usage; 3 no usable Brain; 64 + N if a call failed
with code N, e.g. 69 for not_found (5).`,
		SilenceUsage:  true,
		SilenceErrors: true,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usagef("there is no command %q; the commands are %s", args[0], commandNames(cmd))
			}
			return nil
		},
		PersistentPreRun: func(*cobra.Command, []string) {
			a.token = strings.Clone(a.token) // the original shares the memory that is overwritten
			hideArgument("--token")
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usagef("%v; see `%s --help`", err, cmd.CommandPath())
	})
	root.PersistentFlags().VarP(&a.output, "output", "o", "format of results and errors: text or json")
	completeFlag(root, "output", cobra.FixedCompletions([]string{string(outputText), string(outputJSON)}, cobra.ShellCompDirectiveNoFileComp))
	root.AddCommand(
		a.runCommand(), a.runsCommand(), a.attachCommand(), a.stopCommand(), a.slurmTaskCommand(),
		a.brainCommand(), a.agentCommand(), a.machinesCommand(), a.treeCommand(), a.methodsCommand(), a.callCommand(),
		a.storageCommand(), a.psCommand(), a.replayCommand(),
		a.tokenCommand(), a.caCommand(), a.versionCommand())
	root.InitDefaultCompletionCmd()
	return root
}

// commandNames lists the commands of the program.
func commandNames(root *cobra.Command) string {
	names := make([]string, 0, len(root.Commands()))
	for _, cmd := range root.Commands() {
		if !cmd.Hidden {
			names = append(names, cmd.Name())
		}
	}
	return strings.Join(names, ", ")
}

// clientFlags adds the flags of commands that connect to a running Brain.
func (a *app) clientFlags(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&a.brain, "brain", "", "Brain's address, HOST:PORT (RAYLINK_BRAIN; default: this user's only Brain, else "+raylink.DefaultBrainAddress+")")
	completeFlag(cmd, "brain", completeBrain)
	a.tokenFlags(cmd)
}

func (a *app) tokenFlags(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&a.token, "token", "", "the system's token; other users may see it in the list of processes (RAYLINK_TOKEN)")
	flags.StringVar(&a.tokenFile, "token-file", "", "read the system's token from the first line of this file")
	flags.StringVar(&a.tlsCert, "tls-cert", "", "the PEM file of this side's certificate, in an organisation's own PKI (RAYLINK_TLS_CERT)")
	flags.StringVar(&a.tlsKey, "tls-key", "", "the PEM file of its private key (RAYLINK_TLS_KEY)")
	flags.StringVar(&a.tlsCA, "tls-ca", "", "the PEM file of the CAs that others are verified by (RAYLINK_TLS_CA)")
	flags.BoolVar(&a.open, "open", false, "the system has no token: every user of the machine has full access (RAYLINK_OPEN=1)")
}

// files are the PEM files of an organisation's own PKI: certificate, key and CAs. The first is
// empty if there are none.
func (a *app) files() [3]string {
	return [3]string{
		cmp.Or(a.tlsCert, os.Getenv("RAYLINK_TLS_CERT")), cmp.Or(a.tlsKey, os.Getenv("RAYLINK_TLS_KEY")), cmp.Or(a.tlsCA, os.Getenv("RAYLINK_TLS_CA")),
	}
}

// secret returns the token for the Brain at address: from a flag, the environment, or the file that
// a Brain of this user has published. It is "" if the system is open. It returns rundir.ErrNoToken
// if there is none.
func (a *app) secret(address string) (string, error) {
	fromEnv := os.Getenv("RAYLINK_TOKEN")
	open := a.open
	if text := os.Getenv("RAYLINK_OPEN"); text != "" && !open {
		var err error
		if open, err = strconv.ParseBool(text); err != nil {
			return "", usagef("RAYLINK_OPEN is %q: it must be 1 or 0", text)
		}
	}
	switch {
	case a.tokenFile != "" && a.token != "":
		return "", errTwoTokens()
	case open && (a.tokenFile+a.token != "" || fromEnv != ""):
		return "", errOpenAndToken()
	case open:
		return "", nil
	case a.tokenFile != "":
		return rundir.ReadToken(a.tokenFile)
	case a.token != "":
		return a.token, nil
	case fromEnv != "":
		return fromEnv, nil
	case os.Getenv("RAYLINK_TOKEN_FILE") != "":
		return rundir.ReadToken(os.Getenv("RAYLINK_TOKEN_FILE"))
	}
	token, _, err := rundir.FindToken(address)
	return token, err
}

func errOpenAndToken() error {
	return usagef("both a token and --open (RAYLINK_OPEN) are given; an open system has no token")
}

func errTwoTokens() error { return usagef("both --token and --token-file are given; give only one") }

// between bounds the number of a command's arguments.
func between(low, high int, usage string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) < low || len(args) > high {
			return usagef("wrong number of arguments (%d); usage: %s", len(args), strings.TrimSpace(cmd.CommandPath()+" "+usage))
		}
		return nil
	}
}
