package main

import (
	"context"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/reflect/protoreflect"

	brainv1 "github.com/raylink/raylink/gen/raylink/brain/v1"
	nodev1 "github.com/raylink/raylink/gen/raylink/node/v1"
	"github.com/raylink/raylink/internal/nodename"
)

// completer returns the candidates for the next argument, each with a description. What they are
// comes from the running system; a system that can't be reached has none.
type completer func(ctx context.Context, s *system, args []string) []cobra.Completion

// complete makes cobra's function of a completer. Arguments from the len(by)-th on have no
// candidates.
func (a *app) complete(by ...completer) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, begun string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if len(args) >= len(by) {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), answerTimeout)
		defer cancel()
		s, err := a.connect(ctx)
		if err != nil {
			cobra.CompDebugln(err.Error(), false)
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		defer s.close()
		all := by[len(args)](ctx, s, args)
		all = slices.DeleteFunc(all, func(c cobra.Completion) bool { return !strings.HasPrefix(c, begun) })
		return all, cobra.ShellCompDirectiveNoFileComp
	}
}

// completeFlag registers the candidates for a flag's value.
func completeFlag(cmd *cobra.Command, flag string, by cobra.CompletionFunc) {
	if err := cmd.RegisterFlagCompletionFunc(flag, by); err != nil {
		panic(err) // the flag has no such name
	}
}

// completeNode offers the paths and aliases of all nodes.
func completeNode(ctx context.Context, s *system, _ []string) []cobra.Completion {
	all := s.completeNodes(ctx, func(*nodev1.NodeRecord) bool { return true })
	if all == nil {
		return nil
	}
	return append([]cobra.Completion{cobra.CompletionWithDesc(nodename.RootPath, "Brain")}, all...)
}

// completeNodes offers the paths and aliases of some nodes. It returns nil if they are not known.
func (s *system) completeNodes(ctx context.Context, which func(*nodev1.NodeRecord) bool) []cobra.Completion {
	res, err := s.brain.List(ctx, &brainv1.ListRequest{})
	if err != nil {
		return nil
	}
	all := []cobra.Completion{}
	for _, rec := range res.GetNodes() {
		if !which(rec) {
			continue
		}
		all = append(all, cobra.CompletionWithDesc(printable(rec.GetPath()), nodeSummary(rec)))
		if rec.GetAlias() != "" {
			all = append(all, cobra.CompletionWithDesc(printable(rec.GetAlias()), "alias of "+printable(rec.GetPath())))
		}
	}
	return all
}

func nodeSummary(rec *nodev1.NodeRecord) string {
	return printable(rec.GetType()) + ", " + stateName(rec)
}

// completeMethod offers the methods of the node in the first argument.
func completeMethod(ctx context.Context, s *system, args []string) []cobra.Completion {
	list, known, err := s.methods(ctx, args[0])
	if err != nil {
		return nil
	}
	defer known.close()
	var all []cobra.Completion
	for _, m := range list {
		all = append(all, cobra.CompletionWithDesc(m.Name, m.signature()))
	}
	return all
}

// completeRequest offers one request in JSON: that of the method in the second argument, with all
// its fields at a value of their type.
func completeRequest(ctx context.Context, s *system, args []string) []cobra.Completion {
	rec, err := s.lookup(ctx, args[0])
	if err != nil {
		return nil
	}
	known := s.learn(ctx, args[0])
	defer known.close()
	method, err := known.method(rec, args[1])
	if err != nil {
		return nil
	}
	return []cobra.Completion{cobra.CompletionWithDesc(requestTemplate(method.Input()), string(method.Input().FullName()))}
}

// requestTemplate writes a message in JSON with a value for each field; of a oneof it has the
// first. Messages in it are empty, so that recursive types end.
func requestTemplate(message protoreflect.MessageDescriptor) string {
	var fields []string
	for i := range message.Fields().Len() {
		field := message.Fields().Get(i)
		if oneof := field.ContainingOneof(); oneof != nil && oneof.Fields().Get(0) != field {
			continue
		}
		value := jsonExample(field)
		switch {
		case field.IsMap():
			value = "{}"
		case field.IsList():
			value = "[" + value + "]"
		}
		fields = append(fields, `"`+field.JSONName()+`": `+value)
	}
	return "{" + strings.Join(fields, ", ") + "}"
}

// jsonExample is a value of a field's type as protobuf's JSON mapping has it.
func jsonExample(field protoreflect.FieldDescriptor) string {
	switch field.Kind() {
	case protoreflect.BoolKind:
		return "false"
	case protoreflect.StringKind, protoreflect.BytesKind:
		return `""`
	case protoreflect.EnumKind:
		return `"` + string(field.Enum().Values().Get(0).Name()) + `"`
	case protoreflect.MessageKind, protoreflect.GroupKind:
		switch field.Message().FullName() {
		case "google.protobuf.Duration":
			return `"0s"`
		case "google.protobuf.Timestamp":
			return `"1970-01-01T00:00:00Z"`
		case "google.protobuf.FieldMask":
			return `""`
		}
		return "{}"
	case protoreflect.Int32Kind, protoreflect.Sint32Kind, protoreflect.Uint32Kind, protoreflect.Int64Kind,
		protoreflect.Sint64Kind, protoreflect.Uint64Kind, protoreflect.Sfixed32Kind, protoreflect.Fixed32Kind,
		protoreflect.FloatKind, protoreflect.Sfixed64Kind, protoreflect.Fixed64Kind, protoreflect.DoubleKind:
		return "0"
	}
	return "null"
}
