package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"strings"
)

// summarySystems are the systems of the summary, in its order.
var summarySystems = []string{"raylink", "grpc-go", "connect-h1", "connect-h2c", "drpc", "floor"} //nolint:gochecknoglobals // a table

// summarize writes a Markdown table with one line per row: the value of each system, and the median
// times of RayLink and grpc-go.
func summarize(lines []line, where, path string) error {
	values := make(map[cell]line)
	var rows []line // the first line of each
	for _, l := range lines {
		if len(rows) == 0 || rows[len(rows)-1].Name != l.Name {
			rows = append(rows, l)
		}
		values[cell{l.Name, l.System}] = l
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s.\n\n| row | unit | %s | p50 µs | grpc-go's |\n", where, strings.Join(summarySystems, " | "))
	fmt.Fprintf(&b, "| --- | --- |%s\n", strings.Repeat(" ---: |", len(summarySystems)+2))
	for _, row := range rows {
		fmt.Fprintf(&b, "| `%s` | %s |", strings.TrimPrefix(row.Name, "rpc/"), row.Unit)
		for _, system := range summarySystems {
			fmt.Fprintf(&b, " %s |", number(values[cell{row.Name, system}].Value))
		}
		fmt.Fprintf(&b, " %s | %s |\n", number(values[cell{row.Name, "raylink"}].P50), number(values[cell{row.Name, "grpc-go"}].P50))
	}
	return os.WriteFile(path, []byte(b.String()), 0o600)
}

// readResults reads the lines of an earlier run from its output.
func readResults(path string) ([]line, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // only read
	var lines []line
	text := bufio.NewScanner(f)
	for text.Scan() {
		if !strings.HasPrefix(text.Text(), "{") {
			continue
		}
		var l line
		if err := json.Unmarshal(text.Bytes(), &l); err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		lines = append(lines, l)
	}
	return lines, text.Err()
}
