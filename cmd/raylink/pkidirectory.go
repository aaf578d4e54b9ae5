package main

import (
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/raylink/raylink/internal/admission"
	"github.com/raylink/raylink/internal/pki"
	"github.com/raylink/raylink/runtime/launch"
	"github.com/raylink/raylink/runtime/rundir"
)

// copyCA gives Brain the CA in a directory, if it has none in its data directory.
func copyCA(from, data string) error {
	if from == "" || launch.Launched() {
		return nil
	}
	if data == "" {
		var err error
		if data, err = rundir.DataDir(); err != nil {
			return &localError{err}
		}
	}
	if err := pki.CopyCA(from, filepath.Join(data, "pki")); err != nil {
		return &localError{err}
	}
	return nil
}

func (a *app) makeCACommand() *cobra.Command {
	return &cobra.Command{
		Use:   "make DIRECTORY",
		Short: "Make the CA and the tokens of a system before its Brain, for raylink brain --pki",
		Long: `make makes the CA and the tokens of a system in a directory, before there is a Brain: raylink brain --pki DIRECTORY
uses them, and machines join by the token in DIRECTORY/join.token. So both can be deployed together, as Secrets. What
is there is kept.`,
		Args: between(1, 1, "DIRECTORY"),
		RunE: func(_ *cobra.Command, args []string) error {
			if _, err := admission.Open(args[0], 0); err != nil {
				return &localError{err}
			}
			return nil
		},
	}
}
