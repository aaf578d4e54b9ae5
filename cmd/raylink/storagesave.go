package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/raylink/raylink/services/storage"
)

// selectionHelp explains the arguments that select keys.
const selectionHelp = `An argument that ends with * selects all keys with that prefix; write \* for a key that ends so. Without any, all entries are`

// selected returns what the arguments select.
func selected(args []string) []storage.Selection {
	var all []storage.Selection
	for _, arg := range args {
		prefix, isPrefix := strings.CutSuffix(arg, "*")
		switch {
		case isPrefix && strings.HasSuffix(prefix, `\`):
			all = append(all, storage.Keys(strings.TrimSuffix(prefix, `\`)+"*"))
		case isPrefix:
			all = append(all, storage.Prefix(prefix))
		default:
			all = append(all, storage.Keys(arg))
		}
	}
	return all
}

// transferredEntries is the result of saving and loading in JSON.
type transferredEntries struct {
	Directory string `json:"directory"`
	Entries   uint64 `json:"entries"`
	ID        uint64 `json:"id"`
}

func (s *storageApp) report(directory, what string, saved storage.Saved) error {
	if s.output == outputJSON {
		return s.writeJSON(transferredEntries{directory, saved.Entries, saved.ID})
	}
	entries := "entries"
	if saved.Entries == 1 {
		entries = "entry"
	}
	return s.write(fmt.Sprintf("%d %s %s %s\n", saved.Entries, entries, what, printable(directory)))
}

func (s *storageApp) saveCommand() *cobra.Command {
	return s.finish(&cobra.Command{
		Use:   "save DIR [KEY|PREFIX*]...",
		Short: "Save entries in a directory",
		Long: `save stores entries, all of one moment, in the file storage.jsonl of a directory, in place of what was saved there before.
` + selectionHelp + ` saved.
raylink storage load stores them again. The file has one entry a line, in JSON.`,
		Example:           "  raylink storage save /backup/run-7 config 'run/*'",
		Args:              atLeastOne("DIR [KEY|PREFIX*]..."),
		ValidArgsFunction: completeDirectoryThen(s.completeKeys),
		RunE: func(cmd *cobra.Command, args []string) error {
			return s.save(cmd.Context(), args[0], selected(args[1:]))
		},
	})
}

func (s *storageApp) save(ctx context.Context, directory string, selections []storage.Selection) error {
	c, done, err := s.client(ctx)
	if err != nil {
		return err
	}
	defer done()
	saved, err := c.Save(ctx, directory, selections...)
	if err != nil {
		return err
	}
	return s.report(directory, "saved in", saved)
}

func (s *storageApp) loadCommand() *cobra.Command {
	var synced bool
	cmd := s.finish(&cobra.Command{
		Use:   "load DIR [KEY|PREFIX*]...",
		Short: "Store entries that were saved in a directory",
		Long: `load stores entries from a directory in which raylink storage save has stored them: all or none, in place of those that the
storage has under their keys. Others stay.
` + selectionHelp + ` loaded.`,
		Example: "  raylink storage load /backup/run-7 'run/*'",
		Args:    atLeastOne("DIR [KEY|PREFIX*]..."),
		ValidArgsFunction: completeDirectoryThen(func(*cobra.Command, []string, string) ([]cobra.Completion, cobra.ShellCompDirective) {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}),
		RunE: func(cmd *cobra.Command, args []string) error {
			var opts []storage.LoadOption
			for _, selection := range selected(args[1:]) {
				opts = append(opts, selection)
			}
			if synced {
				opts = append(opts, storage.Sync())
			}
			return s.load(cmd.Context(), args[0], opts)
		},
	})
	cmd.Flags().BoolVar(&synced, "sync", false, "return when the entries are on the disk")
	return cmd
}

func (s *storageApp) load(ctx context.Context, directory string, opts []storage.LoadOption) error {
	c, done, err := s.client(ctx)
	if err != nil {
		return err
	}
	defer done()
	loaded, err := c.Load(ctx, directory, opts...)
	if err != nil {
		return err
	}
	return s.report(directory, "loaded from", loaded)
}
