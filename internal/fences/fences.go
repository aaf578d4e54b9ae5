// Package fences turns a page of documentation into a test of itself: it reads the marked code
// fences of a Markdown page and makes a shell script of them, whose output the page states.
//
// A mark is an HTML comment on the line before a fence, so that it can't be seen on the rendered
// page:
//
//	<!-- run -->             shell commands, run in the script's directory
//	<!-- run elsewhere -->   shell commands, run in a new, empty directory, the script's from then on
//	<!-- file: PATH -->      a file, written to PATH below the script's directory
//	<!-- prints -->          the output of the nearest `run` above; `...` matches any text in a line
//	<!-- from: PATH -->      lines of a file of this repository, without their common indentation
//
// Fences without a mark are ignored.
package fences

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
)

// Kind says what a fence is for.
type Kind string

// The kinds of fence.
const (
	Run          Kind = "run"
	RunElsewhere Kind = "run elsewhere"
	File         Kind = "file"
	Prints       Kind = "prints"
	From         Kind = "from"
)

// Fence is one marked fence.
type Fence struct {
	Kind Kind
	// Path is that of a File or From, relative and with slashes.
	Path string
	// Text is what stands in the fence, its last newline included.
	Text string
	// Line is the number of the mark's line, from 1.
	Line int
}

var (
	marked = regexp.MustCompile("(?ms)^<!-- (run|run elsewhere|file: [^ \n]+|from: [^ \n]+|prints) -->\n```[a-z]*\n(.*?)^```$")
	mark   = regexp.MustCompile(`(?m)^<!-- (run|file|from|prints)\b.*$`)
)

// Parse returns a page's marked fences in order. A mark that is misspelled or has no fence below it
// is an error.
func Parse(page string) ([]Fence, error) {
	matches := marked.FindAllStringSubmatchIndex(page, -1)
	found := make([]Fence, 0, len(matches))
	used := map[int]bool{}
	for _, at := range matches {
		kind, path, _ := strings.Cut(page[at[2]:at[3]], ": ")
		found = append(found, Fence{Kind: Kind(kind), Path: path, Text: page[at[4]:at[5]], Line: line(page, at[0])})
		used[at[0]] = true
	}
	for _, at := range mark.FindAllStringIndex(page, -1) {
		if !used[at[0]] {
			return nil, fmt.Errorf("line %d: %s is not a mark with a code fence on the next line", line(page, at[0]), page[at[0]:at[1]])
		}
	}
	return found, nil
}

// Read is Parse for a file.
func Read(file string) ([]Fence, error) {
	page, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	found, err := Parse(string(page))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return found, nil
}

// separator begins the line that a script prints before each `run`. It separates their outputs.
const separator = "-- output of the fence at line "

// Script returns a bash script that follows the fences, beginning in the directory start. It calls
// elsewhere for the directory of each `run elsewhere`. Where a command fails, so does the script.
func Script(found []Fence, start string, elsewhere func() string) string {
	var s strings.Builder
	fmt.Fprintf(&s, "set -euo pipefail\ncd %q\n", start)
	for _, f := range found {
		switch f.Kind {
		case File:
			fmt.Fprintf(&s, "mkdir -p \"$(dirname %s)\"\ncat >%s <<'END OF FILE'\n%sEND OF FILE\n", f.Path, f.Path, f.Text)
		case RunElsewhere:
			fmt.Fprintf(&s, "echo %q\ncd %q\n%s", separator+strconv.Itoa(f.Line), elsewhere(), f.Text)
		case Run:
			fmt.Fprintf(&s, "echo %q\n%s", separator+strconv.Itoa(f.Line), f.Text)
		case Prints, From:
		}
	}
	return s.String()
}

// Compare compares the output of the fences' script with what the fences say that it prints. The
// error names each `prints` whose `run` printed something else.
func Compare(found []Fence, output string) error {
	outputs := strings.Split("\n"+output, "\n"+separator)[1:]
	var problems []error
	runs := 0
	for _, f := range found {
		switch f.Kind {
		case Run, RunElsewhere:
			runs++
		case Prints:
			if runs == 0 || runs > len(outputs) {
				problems = append(problems, fmt.Errorf("line %d: nothing was run above this output", f.Line))
				continue
			}
			_, got, _ := strings.Cut(outputs[runs-1], "\n")
			if got = strings.TrimSuffix(got, "\n"); !pattern(f.Text).MatchString(got + "\n") {
				problems = append(problems, fmt.Errorf("line %d: printed\n%s\n\ninstead of\n%s", f.Line, got, f.Text))
			}
		case File, From:
		}
	}
	return errors.Join(problems...)
}

// pattern matches what a `prints` stands for.
func pattern(text string) *regexp.Regexp {
	return regexp.MustCompile("^" + strings.ReplaceAll(regexp.QuoteMeta(text), `\.\.\.`, ".*") + "$")
}

// CheckQuotations compares each From with the file of that name below root: its lines must be there
// one after the other, all indented by as much as the first is.
func CheckQuotations(found []Fence, root string) error {
	var problems []error
	for _, f := range found {
		if f.Kind != From {
			continue
		}
		file, err := os.ReadFile(filepath.Join(root, filepath.FromSlash(f.Path)))
		if err != nil {
			problems = append(problems, fmt.Errorf("line %d: %w", f.Line, err))
			continue
		}
		if !quoted(string(file), f.Text) {
			problems = append(problems, fmt.Errorf("line %d: these lines are not in %s:\n%s", f.Line, f.Path, f.Text))
		}
	}
	return errors.Join(problems...)
}

func quoted(file, text string) bool {
	lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
	first := regexp.MustCompile(`(?m)^([ \t]*)` + regexp.QuoteMeta(lines[0]) + "$")
	for _, at := range first.FindAllStringSubmatch(file, -1) {
		indented := make([]string, len(lines))
		for i, l := range lines {
			if l != "" {
				indented[i] = at[1] + l
			}
		}
		if strings.Contains("\n"+file, "\n"+strings.Join(indented, "\n")+"\n") {
			return true
		}
	}
	return false
}

// Environment returns this process's environment without the variables of RayLink and make, plus
// those given.
func Environment(more ...string) []string {
	var env []string
	for _, e := range os.Environ() {
		if !strings.HasPrefix(e, "RAYLINK_") && !strings.HasPrefix(e, "MAKE") {
			env = append(env, e)
		}
	}
	return append(env, more...)
}

func line(page string, at int) int { return 1 + strings.Count(page[:at], "\n") }
