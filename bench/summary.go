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

// summarize writes Markdown tables with one line per row: of calls, the value of each system and
// the median times of RayLink and grpc-go; of the services, those of RayLink and of the row's other
// systems.
func summarize(lines []line, where, path string) error {
	values := make(map[cell]line)
	var calls, parameters, storages, replays, machines []line // the first line of each row
	for i, l := range lines {
		values[cell{l.Name, l.System}] = l
		if i > 0 && lines[i-1].Name == l.Name {
			continue
		}
		switch {
		case strings.HasPrefix(l.Name, psPrefix):
			parameters = append(parameters, l)
		case strings.HasPrefix(l.Name, storagePrefix):
			storages = append(storages, l)
		case strings.HasPrefix(l.Name, replayPrefix):
			replays = append(replays, l)
		case strings.HasPrefix(l.Name, machinesPrefix), strings.HasPrefix(l.Name, swarmPrefix):
			machines = append(machines, l)
		default:
			calls = append(calls, l)
		}
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s.\n", where)
	if len(calls) > 0 {
		summarizeCalls(&b, calls, values)
	}
	summarizeServices(&b, psPrefix, parameters, lines)
	summarizeServices(&b, storagePrefix, storages, lines)
	summarizeServices(&b, replayPrefix, replays, lines)
	summarizeServices(&b, machinesPrefix, machines, lines)
	return os.WriteFile(path, []byte(b.String()), 0o600)
}

func summarizeCalls(b *strings.Builder, rows []line, values map[cell]line) {
	fmt.Fprintf(b, "\n| row | unit | %s | p50 µs | grpc-go's |\n", strings.Join(summarySystems, " | "))
	fmt.Fprintf(b, "| --- | --- |%s\n", strings.Repeat(" ---: |", len(summarySystems)+2))
	for _, row := range rows {
		fmt.Fprintf(b, "| `%s` | %s |", strings.TrimPrefix(row.Name, "rpc/"), row.Unit)
		for _, system := range summarySystems {
			fmt.Fprintf(b, " %s |", number(values[cell{row.Name, system}].Value))
		}
		fmt.Fprintf(b, " %s | %s |\n", number(values[cell{row.Name, "raylink"}].P50), number(values[cell{row.Name, "grpc-go"}].P50))
	}
}

// psPrefix is what names of rows of the parameter server begin with.
const psPrefix = "ps/"

// summarizeServices writes a table of rows whose names have a prefix, if there are any. Each has
// systems of its own.
func summarizeServices(b *strings.Builder, prefix string, rows, lines []line) {
	systems := make(map[string][]line)
	most := 0
	for _, l := range lines {
		systems[l.Name] = append(systems[l.Name], l)
		if strings.HasPrefix(l.Name, prefix) {
			most = max(most, len(systems[l.Name]))
		}
	}
	if most == 0 {
		return
	}
	fmt.Fprintf(b, "\n| row | unit | system | value | p50 µs |%s\n", strings.Repeat(" other system | value | p50 µs |", most-1))
	fmt.Fprintf(b, "| --- | --- |%s\n", strings.Repeat(" --- | ---: | ---: |", most))
	for _, row := range rows {
		fmt.Fprintf(b, "| `%s` | %s |", strings.TrimPrefix(row.Name, prefix), row.Unit)
		for _, l := range systems[row.Name] {
			if l.Missing != "" {
				fmt.Fprintf(b, " %s | missing | |", l.System)
				continue
			}
			fmt.Fprintf(b, " %s | %s | %s |", l.System, number(l.Value), number(l.P50))
		}
		b.WriteString(strings.Repeat(" | | |", most-len(systems[row.Name])) + "\n")
	}
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
