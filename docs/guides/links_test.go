package guides_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

var (
	link    = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	heading = regexp.MustCompile(`(?m)^#+ (.*)$`)
	fenced  = regexp.MustCompile("(?ms)^```.*?^```$")
	unslug  = regexp.MustCompile(`[^\p{L}\p{N} _-]`)
)

// TestLinksHaveTargets checks the relative links of all pages: the file exists, and so does the
// heading of an anchor.
func TestLinksHaveTargets(t *testing.T) {
	t.Parallel()
	checked := 0
	require.NoError(t, filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.IsDir() && path != root && strings.HasPrefix(entry.Name(), ".") {
			return fs.SkipDir
		}
		if entry.IsDir() || !strings.HasSuffix(path, ".md") {
			return nil
		}
		page, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for _, found := range link.FindAllStringSubmatch(fenced.ReplaceAllString(string(page), ""), -1) {
			if strings.Contains(found[1], "://") || found[1] == "0" { // a conversion in Go: T[A](0)
				continue
			}
			checked++
			file, anchor, _ := strings.Cut(found[1], "#")
			target := filepath.Join(filepath.Dir(path), filepath.FromSlash(file))
			if file == "" {
				target = path
			}
			_, err := os.Stat(target)
			if !assert.NoError(t, err, "%s links to %s", path, found[1]) || anchor == "" {
				continue
			}
			text, err := os.ReadFile(target)
			if err != nil {
				return err
			}
			assert.Contains(t, anchors(string(text)), anchor, "%s links to %s, and the page has no such heading", path, found[1])
		}
		return nil
	}))
	require.Greater(t, checked, 50, "links")
}

// anchors returns those of a page's headings, as GitHub makes them.
func anchors(page string) []string {
	var all []string
	for _, h := range heading.FindAllStringSubmatch(fenced.ReplaceAllString(page, ""), -1) {
		all = append(all, strings.ReplaceAll(unslug.ReplaceAllString(strings.ToLower(h[1]), ""), " ", "-"))
	}
	return all
}
