package main

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/spf13/cobra"
)

func (a *app) tokenCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "token",
		Short: "Print the system's token, for programs that call nodes over HTTP",
		Long: `token prints the system's token, for Authorization headers. It prints the token only if the process at
Brain's address has proven that it knows it too, so that it is safe to send it there.`,
		Example: `  curl http://127.0.0.1:6800/counter-0/counter.v1.Counter/Get -H "Authorization: Bearer $(raylink token)" \
    -H 'Content-Type: application/json' -d '{}'`,
		Args: between(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error { return a.printToken(cmd.Context()) },
	}
	a.clientFlags(cmd)
	return cmd
}

func (a *app) printToken(ctx context.Context) error {
	s, err := a.connect(ctx)
	if err != nil {
		return err
	}
	s.close()
	if s.token == "" {
		return usagef("the system is open: it has no token")
	}
	line := s.token
	if a.output == outputJSON {
		b, err := json.Marshal(map[string]string{"token": s.token})
		if err != nil {
			return &localError{err}
		}
		line = string(b)
	}
	if _, err := fmt.Fprintln(a.out, line); err != nil {
		return &localError{fmt.Errorf("writing the token: %w", err)}
	}
	return nil
}
