package main

import (
	"encoding/json"
	"fmt"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/raylink/raylink/runtime/tunnel"
)

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version of this program and of the protocols it speaks",
		Args:  between(0, 0, ""),
		RunE:  func(*cobra.Command, []string) error { return a.printVersion() },
	}
}

// versionInfo is what `raylink version` prints.
type versionInfo struct {
	Version  string `json:"version"`            // of the module; "(devel)" for a build of a working tree
	Revision string `json:"revision,omitempty"` // the commit, with "+dirty" for one with changes
	Go       string `json:"go"`
	Platform string `json:"platform"` // GOOS/GOARCH
	// The protocol versions, as docs/tunnel.md has them.
	Tunnel string `json:"tunnel"`
	Brain  string `json:"brain"`
}

func thisVersion() versionInfo {
	v := versionInfo{
		Version: "(devel)", Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH,
		Tunnel: versionRange(tunnel.MinVersion, tunnel.MaxVersion), Brain: versionRange(minVersion, maxVersion),
	}
	build, ok := debug.ReadBuildInfo()
	if !ok {
		return v
	}
	if build.Main.Version != "" {
		v.Version = build.Main.Version
	}
	settings := make(map[string]string)
	for _, s := range build.Settings {
		settings[s.Key] = s.Value
	}
	if v.Revision = settings["vcs.revision"]; v.Revision != "" && settings["vcs.modified"] == "true" {
		v.Revision += "+dirty"
	}
	return v
}

func versionRange(low, high int) string {
	if low == high {
		return strconv.Itoa(high)
	}
	return fmt.Sprintf("%d to %d", low, high)
}

func (a *app) printVersion() error {
	v := thisVersion()
	if a.output == outputJSON {
		text, err := json.Marshal(v)
		if err != nil {
			return &localError{err}
		}
		return a.write(string(text) + "\n")
	}
	var text strings.Builder
	for _, row := range [...][2]string{
		{"raylink", v.Version},
		{"revision", v.Revision},
		{"go", v.Go + " " + v.Platform},
		{"tunnel protocol", v.Tunnel},
		{"Brain protocol", v.Brain},
	} {
		if row[1] != "" {
			fmt.Fprintf(&text, "%-16s %s\n", row[0], row[1])
		}
	}
	return a.write(text.String())
}
