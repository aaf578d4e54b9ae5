package main

import (
	"context"
	"io"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/raylink/raylink"
	"github.com/raylink/raylink/internal/assemble"
	"github.com/raylink/raylink/runtime/rundir"
)

// app is one run of the program: where it reads and writes, and what the flags that all commands share say.
type app struct {
	in       io.Reader
	out, err io.Writer

	brain     string
	token     string
	tokenFile string
	open      bool
	output    outputForm
}

// outputForm is how results and errors are written.
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
	return usagef("the output is `text` or `json`, not %q", s)
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
	return a.tell(err)
}

func (a *app) command() *cobra.Command {
	root := &cobra.Command{
		Use:   "raylink",
		Short: "Run a Brain, look at a system's nodes, and call them",
		Long: `raylink runs a Brain, shows the nodes of a system, and calls them.

Brain is found by --brain, else RAYLINK_BRAIN, else at ` + raylink.DefaultBrainAddress + `. The system's token is --token-file, --token (which
other users of this machine may see) or RAYLINK_TOKEN; without any, the one that a Brain of this user on this machine has made.

Exit codes: 0 done; 1 failed on this side; 2 wrong usage; 3 no Brain that can be used; 64 + the code of the error that a
call ended in, e.g. 69 for not_found (5).`,
		SilenceUsage:  true,
		SilenceErrors: true,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usagef("there is no command %q; there are brain, tree, call and token", args[0])
			}
			return nil
		},
		PersistentPreRun: func(*cobra.Command, []string) {
			a.token = strings.Clone(a.token) // what it was shares its memory with what is hidden
			hideArgument("--token")
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usagef("%v; see `%s --help`", err, cmd.CommandPath())
	})
	root.CompletionOptions.HiddenDefaultCmd = true
	flags := root.PersistentFlags()
	flags.VarP(&a.output, "output", "o", "how to write results and errors: text or json")
	root.AddCommand(a.brainCommand(), a.treeCommand(), a.callCommand(), a.tokenCommand())
	return root
}

// clientFlags are those of the commands that need a Brain elsewhere.
func (a *app) clientFlags(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&a.brain, "brain", "", "Brain's address, HOST:PORT (RAYLINK_BRAIN; default "+raylink.DefaultBrainAddress+")")
	a.tokenFlags(cmd)
}

func (a *app) tokenFlags(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&a.token, "token", "", "the system's token, seen by whoever lists processes (RAYLINK_TOKEN)")
	flags.StringVar(&a.tokenFile, "token-file", "", "a file whose first line is the system's token")
	flags.BoolVar(&a.open, "open", false, "the system asks for no token: every user of the machine may do everything (RAYLINK_OPEN=1)")
}

// secret is the token for Brain at an address: what the flags or the environment give, else what a Brain of this user has made. It
// is "" where the system is open. A token that is not found is rundir.ErrNoToken.
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
		return assemble.ReadToken(a.tokenFile)
	case a.token != "":
		return a.token, nil
	case fromEnv != "":
		return fromEnv, nil
	}
	token, _, err := rundir.FindToken(address)
	return token, err
}

func errOpenAndToken() error {
	return usagef("a token is given, and the system is said to be open (--open, RAYLINK_OPEN): which one is it?")
}

func errTwoTokens() error { return usagef("both --token and --token-file are given: which one is it?") }

// address is Brain's.
func (a *app) address() string {
	for _, address := range []string{a.brain, os.Getenv("RAYLINK_BRAIN")} {
		if address != "" {
			return strings.TrimPrefix(address, "http://")
		}
	}
	return raylink.DefaultBrainAddress
}

// between bounds the number of a command's arguments.
func between(low, high int, usage string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) < low || len(args) > high {
			return usagef("`%s` is called as `%s`", cmd.CommandPath(), strings.TrimSpace(cmd.CommandPath()+" "+usage))
		}
		return nil
	}
}
