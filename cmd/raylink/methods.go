package main

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/raylink/raylink/internal/nodename"
)

func (a *app) methodsCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "methods NODE",
		Short: "List a node's methods with their requests and responses",
		Long: `methods lists the methods of a node, found by path, alias or nid: its own first, then those that every
node has. Each is shown as ` + "`raylink call`" + ` takes it, with the types of its request and response
("stream" marks a streaming side) and the fields of its request.

With -o json it prints one object whose "methods" are the methods.`,
		Example:           "  raylink methods counter-0",
		Args:              between(1, 1, "NODE"),
		ValidArgsFunction: a.complete(completeNode),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.printMethods(cmd.Context(), args[0])
		},
	}
	a.clientFlags(cmd)
	return cmd
}

// methodInfo describes a method for a person or a program.
type methodInfo struct {
	// Name is the shortest that `raylink call` takes.
	Name           string `json:"name"`
	Procedure      string `json:"procedure"` // /package.Service/Method
	Request        string `json:"request"`   // the message's full name
	Response       string `json:"response"`  // likewise
	ClientStream   bool   `json:"client_stream,omitempty"`
	ServerStream   bool   `json:"server_stream,omitempty"`
	RequestExample string `json:"request_example"` // JSON, see requestTemplate

	fields string
}

// signature is the method's types as a schema writes them.
func (m *methodInfo) signature() string {
	stream := map[bool]string{true: "stream "}
	return "(" + stream[m.ClientStream] + m.Request + ") returns (" + stream[m.ServerStream] + m.Response + ")"
}

// methods lists a node's methods, its own first. The caller closes the schema if there is no error.
func (s *system) methods(ctx context.Context, node string) ([]methodInfo, *schema, error) {
	rec, err := s.lookup(ctx, node)
	if err != nil {
		return nil, nil, err
	}
	known := s.learn(ctx, node)
	services, err := known.services(servicesOf(rec))
	if err != nil {
		known.close()
		return nil, nil, &callError{err, known}
	}
	var list []methodInfo
	names := methodNames(services)
	for _, service := range services {
		for i := range service.Methods().Len() {
			m := service.Methods().Get(i)
			list = append(list, methodInfo{
				Name:           names[len(list)],
				Procedure:      nodename.Procedure(string(service.FullName()), string(m.Name())),
				Request:        string(m.Input().FullName()),
				Response:       string(m.Output().FullName()),
				ClientStream:   m.IsStreamingClient(),
				ServerStream:   m.IsStreamingServer(),
				RequestExample: requestTemplate(m.Input()),
				fields:         fieldNames(m.Input()),
			})
		}
	}
	return list, known, nil
}

func (a *app) printMethods(ctx context.Context, node string) error {
	s, err := a.connect(ctx)
	if err != nil {
		return err
	}
	defer s.close()
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	list, known, err := s.methods(ctx, node)
	if err != nil {
		return err
	}
	defer known.close()
	if a.output == outputJSON {
		text, err := json.Marshal(map[string][]methodInfo{"methods": list})
		if err != nil {
			return &localError{err}
		}
		return a.write(string(text) + "\n")
	}
	rows := [][]string{{"METHOD", "SIGNATURE", "REQUEST FIELDS"}}
	for _, m := range list {
		rows = append(rows, []string{printable(m.Name), printable(m.signature()), printable(m.fields)})
	}
	return a.write(table(rows))
}

// write writes a command's result.
func (a *app) write(text string) error {
	if _, err := fmt.Fprint(a.out, text); err != nil {
		return &localError{fmt.Errorf("writing the result: %w", err)}
	}
	return nil
}
