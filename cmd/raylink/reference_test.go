package main

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestEveryFlagIsInTheReference shows that docs/cli.md has each command, and each flag of a command
// in the command's section or in the part that holds for all commands.
func TestEveryFlagIsInTheReference(t *testing.T) {
	text, err := os.ReadFile("../../docs/cli.md")
	require.NoError(t, err)
	sections := strings.Split(string(text), "\n## ")
	general := sections[0]
	// sectionOf returns the section whose heading has the command's name, and else the whole text.
	sectionOf := func(name string) string {
		for _, section := range sections[1:] {
			heading, _, _ := strings.Cut(section, "\n")
			if regexp.MustCompile(`^raylink .*\b` + regexp.QuoteMeta(name) + `\b`).MatchString(heading) {
				return section
			}
		}
		return string(text)
	}
	var visit func(cmd *cobra.Command, section string)
	visit = func(cmd *cobra.Command, section string) {
		has := func(pattern string) bool { return regexp.MustCompile(pattern).MatchString(general + section) }
		assert.True(t, has(`\b`+regexp.QuoteMeta(cmd.Name())+`\b`), "docs/cli.md lacks %s", cmd.CommandPath())
		cmd.LocalFlags().VisitAll(func(flag *pflag.Flag) {
			if !flag.Hidden && flag.Name != "help" {
				assert.True(t, has("--"+regexp.QuoteMeta(flag.Name)+`\b([^-]|$)`), "docs/cli.md lacks --%s of %s", flag.Name, cmd.CommandPath())
			}
		})
		for _, sub := range cmd.Commands() {
			if !sub.Hidden && sub.Name() != "help" {
				visit(sub, section)
			}
		}
	}
	root := (&app{}).command()
	for _, cmd := range root.Commands() {
		if !cmd.Hidden && cmd.Name() != "completion" && cmd.Name() != "help" {
			visit(cmd, sectionOf(cmd.Name()))
		}
	}
}
