package main

import (
	"context"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/raylink/raylink"
	"github.com/raylink/raylink/internal/assemble"
)

// app is one run of the program: where it reads and writes, and what the flags that all commands share say.
type app struct {
	in       io.Reader
	out, err io.Writer

	brain     string
	token     string
	tokenFile string
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

Brain is found by --brain, else RAYLINK_BRAIN, else at ` + raylink.DefaultBrainAddress + `. Where the system asks for a token, it is
--token-file, --token (which other users of this machine can see) or RAYLINK_TOKEN.

Exit codes: 0 done; 1 failed on this side; 2 wrong usage; 3 no Brain that can be used; 64 + the code of the error that a
call ended in, e.g. 69 for not_found (5).`,
		SilenceUsage:  true,
		SilenceErrors: true,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usagef("there is no command %q; there are brain, tree and call", args[0])
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usagef("%v; see `%s --help`", err, cmd.CommandPath())
	})
	root.CompletionOptions.HiddenDefaultCmd = true
	flags := root.PersistentFlags()
	flags.VarP(&a.output, "output", "o", "how to write results and errors: text or json")
	root.AddCommand(a.brainCommand(), a.treeCommand(), a.callCommand())
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
}

// secret is the token that the flags or the environment give.
func (a *app) secret() (string, error) {
	switch {
	case a.tokenFile != "" && a.token != "":
		return "", errTwoTokens()
	case a.tokenFile != "":
		return assemble.ReadToken(a.tokenFile)
	case a.token != "":
		return a.token, nil
	}
	return os.Getenv("RAYLINK_TOKEN"), nil
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
