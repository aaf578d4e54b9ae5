package main

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

var rewrite = flag.Bool("rewrite", false, "update the output in the scripts of testdata")

// TestScripts runs each script in testdata against a system of its own and compares the output. A
// script has a shell command after `$`, then its output: lines of standard error begin with `!`,
// and the last line has the exit code if it isn't 0. Words in capitals stand for text that varies.
// The flag -rewrite updates the scripts.
func TestScripts(t *testing.T) {
	scripts, err := filepath.Glob("testdata/*.txt")
	require.NoError(t, err)
	require.NotEmpty(t, scripts)
	for _, script := range scripts {
		t.Run(strings.TrimSuffix(filepath.Base(script), ".txt"), func(t *testing.T) {
			text, err := os.ReadFile(script)
			require.NoError(t, err)
			b := startBrain(t, t.TempDir(), "127.0.0.1:0")
			if filepath.Base(script) == "replay.txt" {
				startDriver(t, b, replaysMode+"=1")
			} else {
				startDriver(t, b)
			}
			var got strings.Builder
			for line := range strings.SplitSeq(string(text), "\n") {
				switch {
				case strings.HasPrefix(line, "#"):
					fmt.Fprintln(&got, line)
				case strings.HasPrefix(line, "$ "):
					fmt.Fprintf(&got, "%s\n%s\n", line, b.shell(t, strings.TrimPrefix(line, "$ ")))
				}
			}
			if *rewrite {
				require.NoError(t, os.WriteFile(script, []byte(got.String()), 0o600))
				return
			}
			require.Equal(t, string(text), got.String())
		})
	}
}

// shell runs a command and returns its output in the format of the scripts.
func (b *brain) shell(t *testing.T, command string) string {
	t.Helper()
	cmd := exec.Command("sh", "-c", command)
	cmd.Env = environment("RAYLINK_BRAIN="+b.address, "TMPDIR="+b.data)
	stdout, stderr, exit := finish(t, cmd)
	if stderr != "" {
		stdout += "! " + strings.Join(strings.SplitAfter(strings.TrimSuffix(stderr, "\n"), "\n"), "! ") + "\n"
	}
	if exit != 0 {
		stdout += fmt.Sprintf("[exit %d]\n", exit)
	}
	stdout = strings.ReplaceAll(stdout, b.address, "BRAIN-ADDRESS")
	stdout = strings.ReplaceAll(stdout, b.data, "DATA")
	for _, v := range varying {
		stdout = v.pattern.ReplaceAllString(stdout, v.with)
	}
	return stdout
}

// varying lists text that differs from run to run.
var varying = []struct {
	pattern *regexp.Regexp
	with    string
}{
	{regexp.MustCompile(`[^\s"]+\.ring`), "RING"},
	{regexp.MustCompile(`"(age|window|waited)_seconds":[0-9.e-]+`), `"${1}_seconds":TIME`},
	{regexp.MustCompile(`"(inserts|samples)_per_second":[0-9.e-]+`), `"${1}_per_second":RATE`},
	{regexp.MustCompile(`\d+\.\d per second`), "RATE per second"},
	{regexp.MustCompile(`(has waited|, ) ?\d[0-9.]*m?s( ago| for)`), "$1 TIME$2"},
	{regexp.MustCompile(`"bytes":\d+,"lost"`), `"bytes":SIZE,"lost"`},
	{regexp.MustCompile(`\d[0-9.]* KiB in DATA/copy`), "SIZE in DATA/copy"},
	{regexp.MustCompile(`"id":"[0-9a-f]{32}"`), `"id":"ID"`},
	{regexp.MustCompile(`HOLDER +ROWS`), "HOLDER  ROWS"},
	{regexp.MustCompile(`(process )\d+( +\d+ +)\S+s`), "${1}PID${2}TIME"},
	{regexp.MustCompile(`(?m)  \d[0-9.]*m?s$`), "  TIME"},
	{regexp.MustCompile(`INSERTED +SAMPLED +WAITING`), "INSERTED  SAMPLED  WAITING"},
	{regexp.MustCompile(`\(\d+\.\d/s\) *`), "(RATE/s)  "},
	{regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}`), "NID"},
	{regexp.MustCompile(`127\.0\.0\.1:\d{4,}`), "ADDRESS"},
	{regexp.MustCompile(`  \d{2,7} +(BRAIN-)?ADDRESS *`), "  PID  ADDRESS  "},
	{regexp.MustCompile(`PID +HOST *`), "PID  HOST  "},
	{regexp.MustCompile(`deadline exceeded while it ran`), "deadline exceeded"}, // if the node's error came first
	{regexp.MustCompile(`(?m) +$`), ""},
	{regexp.MustCompile(`"pid": ?"?\d+"?`), `"pid": PID`},
	{regexp.MustCompile(`\d+\.\d+s"`), `TIME"`},
	{regexp.MustCompile(`[a-z2-7]{10} \(home\)`), "MACHINE (home)"},
	{regexp.MustCompile(`20\d\d-\d\d-\d\dT[0-9:.]+Z`), "TIME"},
}
