package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"connectrpc.com/connect/v2"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	brainv1 "github.com/raylink/raylink/gen/raylink/brain/v1"
	"github.com/raylink/raylink/gen/raylink/brain/v1/brainv1connect"
	"github.com/raylink/raylink/runtime/rundir"
)

func (a *app) tokenCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "token",
		Short: "Print the system's token, and make, list and revoke tokens",
		Long: `token prints the system's token, for Authorization headers. It prints the token only if the process at
Brain's address has proven that it knows it too, so that it is safe to send it there.

In a system that uses TLS with a CA of its own there are more tokens, each with a role: call (call nodes),
join (host nodes too), admin (administer tokens too). The commands below administer them; they need the
role admin, which the user who runs Brain has.`,
		Example: `  curl http://127.0.0.1:6800/counter-0/counter.v1.Counter/Get -H "Authorization: Bearer $(raylink token)" \
    -H 'Content-Type: application/json' -d '{}'
  raylink token make --role call --name dashboard --expires 720h`,
		Args: between(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error { return a.printToken(cmd.Context()) },
	}
	a.clientFlags(cmd)
	cmd.AddCommand(a.makeTokenCommand(), a.listTokensCommand(), a.revokeTokenCommand())
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
	return a.printLine(line)
}

func (a *app) printLine(line string) error {
	if _, err := fmt.Fprintln(a.out, line); err != nil {
		return &localError{fmt.Errorf("writing the result: %w", err)}
	}
	return nil
}

func (a *app) makeTokenCommand() *cobra.Command {
	var role, name string
	var expires time.Duration
	cmd := &cobra.Command{
		Use:   "make",
		Short: "Make a token and print it; it can't be shown again",
		Args:  between(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error {
			req := &brainv1.MakeTokenRequest{Label: name, Role: brainv1.Role(brainv1.Role_value["ROLE_"+strings.ToUpper(role)])}
			if req.GetRole() == brainv1.Role_ROLE_UNSPECIFIED {
				return usagef("the role %q is not known: use call, join or admin", role)
			}
			if expires < 0 {
				return usagef("--expires is %v: it must be positive", expires)
			}
			if expires > 0 {
				req.Expires = timestamppb.New(time.Now().Add(expires))
			}
			return a.administer(cmd.Context(), func(ctx context.Context, tokens brainv1connect.TokenServiceClient) error {
				res, err := tokens.MakeToken(ctx, req)
				if err != nil {
					return err
				}
				if a.output == outputJSON {
					return a.printMessage(res)
				}
				return a.printLine(res.GetToken())
			})
		},
	}
	cmd.Flags().StringVar(&role, "role", "join", "what it allows: call, join or admin")
	completeFlag(cmd, "role", cobra.FixedCompletions([]string{"call", "join", "admin"}, cobra.ShellCompDirectiveNoFileComp))
	cmd.Flags().StringVar(&name, "name", "", "a name, for people")
	cmd.Flags().DurationVar(&expires, "expires", 0, "how long it can be used, e.g. 720h (default: for ever)")
	a.clientFlags(cmd)
	return cmd
}

func (a *app) listTokensCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the system's tokens, without their secrets",
		Args:  between(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.administer(cmd.Context(), func(ctx context.Context, tokens brainv1connect.TokenServiceClient) error {
				res, err := tokens.ListTokens(ctx, &brainv1.ListTokensRequest{})
				if err != nil {
					return err
				}
				if a.output == outputJSON {
					return a.printMessage(res)
				}
				return a.printTokens(res.GetTokens())
			})
		},
	}
	a.clientFlags(cmd)
	return cmd
}

func (a *app) printTokens(tokens []*brainv1.TokenInfo) error {
	const padding = 2
	w := tabwriter.NewWriter(a.out, 0, 0, padding, ' ', 0)
	fmt.Fprintln(w, "ID\tROLE\tCREATED\tSTATE\tNAME")
	for _, t := range tokens {
		state := "valid"
		switch expires := t.GetExpires(); {
		case t.GetRevoked() != nil:
			state = "revoked " + formatDay(t.GetRevoked())
		case expires != nil && time.Now().After(expires.AsTime()):
			state = "expired " + formatDay(expires)
		case expires != nil:
			state = "until " + formatDay(expires)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", t.GetId(), strings.ToLower(strings.TrimPrefix(t.GetRole().String(), "ROLE_")),
			formatDay(t.GetCreated()), state, t.GetLabel())
	}
	if err := w.Flush(); err != nil {
		return &localError{fmt.Errorf("writing the result: %w", err)}
	}
	return nil
}

func formatDay(t *timestamppb.Timestamp) string { return t.AsTime().Format(time.RFC3339) }

func (a *app) revokeTokenCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "revoke ID",
		Short: "Revoke a token, and end what has joined by it",
		Args:  between(1, 1, "ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.administer(cmd.Context(), func(ctx context.Context, tokens brainv1connect.TokenServiceClient) error {
				res, err := tokens.RevokeToken(ctx, &brainv1.RevokeTokenRequest{Id: args[0]})
				if err != nil {
					return err
				}
				if a.output == outputJSON {
					return a.printMessage(res)
				}
				return a.printLine("revoked " + res.GetInfo().GetId())
			})
		},
	}
	a.clientFlags(cmd)
	return cmd
}

func (a *app) caCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "ca",
		Short: "Print the certificate of the system's CA, for clients in other languages",
		Long: `ca prints the certificate of the CA of a system that uses TLS, in PEM: clients in other languages verify
the certificates of Brain and of hosts by it.`,
		Example: `  raylink ca > ca.pem
  curl --cacert ca.pem https://10.0.0.1:6800/counter-0/counter.v1.Counter/Get -H "Authorization: Bearer $TOKEN" \
    -H 'Content-Type: application/json' -d '{}'`,
		Args: between(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withTokens(cmd.Context(), func(ctx context.Context, tokens brainv1connect.TokenServiceClient) error {
				res, err := tokens.GetCA(ctx, &brainv1.GetCARequest{})
				if err != nil {
					return err
				}
				if a.output == outputJSON {
					return a.printMessage(res)
				}
				return a.printLine(strings.TrimSpace(res.GetCertificate()))
			})
		},
	}
	cmd.AddCommand(a.makeCACommand())
	a.clientFlags(cmd)
	return cmd
}

// administer is withTokens with the token that Brain has published for its user's administration,
// if none is given.
func (a *app) administer(ctx context.Context, run func(context.Context, brainv1connect.TokenServiceClient) error) error {
	if a.token+a.tokenFile == "" && os.Getenv("RAYLINK_TOKEN") == "" {
		address, err := a.address(ctx)
		if err != nil {
			return err
		}
		switch token, err := rundir.FindAdminToken(address); {
		case err == nil:
			a.token = token
		case !errors.Is(err, rundir.ErrNoToken):
			return &localError{err}
		}
	}
	return a.withTokens(ctx, run)
}

// withTokens calls the service that administers tokens.
func (a *app) withTokens(ctx context.Context, run func(context.Context, brainv1connect.TokenServiceClient) error) error {
	s, err := a.connect(ctx)
	if err != nil {
		return err
	}
	defer s.close()
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	err = run(ctx, brainv1connect.NewTokenServiceClient(s.client("")))
	if connect.CodeOf(err) == connect.CodeUnimplemented {
		return usagef("the system has no CA of its own, and one token: " +
			"it listens on loopback only, is insecure on purpose, or has an organisation's certificates")
	}
	return err
}

// printMessage prints a result for programs.
func (a *app) printMessage(m proto.Message) error {
	b, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(m)
	if err != nil {
		return &localError{err}
	}
	return a.printLine(string(b))
}
