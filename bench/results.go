package main

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
)

// results are the results of all rounds.
type results struct {
	rows    []row
	figures map[cell][]figures
	// failed are the errors of measurements that failed.
	failed []error
	// missing says why a system could not take part.
	missing map[cell]string
}

type cell struct{ row, system string }

// line is the output for one cell, one JSON object.
type line struct {
	Name   string  `json:"name"`
	System string  `json:"system"`
	Value  float64 `json:"value"`
	Unit   string  `json:"unit"`
	P50    float64 `json:"p50_us"`
	P99    float64 `json:"p99_us"`
	Allocs float64 `json:"allocs"`
	// CPU is the CPU time of both sides per operation: on a busy machine it is more meaningful than
	// the elapsed time.
	CPU float64 `json:"cpu_us"`
	// Floor is the system's share of the row's floor; absent if the row has no floor.
	Floor float64 `json:"floor,omitempty"`
	// Spread is the distance between the lowest and the highest round, as a share of the median.
	Spread float64 `json:"spread"`
	// Missing says why the system could not take part. All figures are 0 then.
	Missing string `json:"missing,omitempty"`
}

func newResults(rs []row) *results {
	return &results{rows: rs, figures: make(map[cell][]figures), missing: make(map[cell]string)}
}

func (r *results) add(row, system string, f figures) {
	c := cell{row, system}
	r.figures[c] = append(r.figures[c], f)
}

// line returns the medians of a cell, or false if it was not measured.
func (r *results) line(row *row, system string) (line, bool) {
	fs := r.figures[cell{row.name, system}]
	if len(fs) == 0 {
		missing, ok := r.missing[cell{row.name, system}]
		return line{Name: row.name, System: system, Unit: row.unit, Missing: missing}, ok
	}
	of := func(field func(figures) float64) []float64 {
		vs := make([]float64, len(fs))
		for i, f := range fs {
			vs[i] = field(f)
		}
		slices.Sort(vs)
		return vs
	}
	values := of(func(f figures) float64 { return f.value })
	return line{
		Name: row.name, System: system, Unit: row.unit,
		Value: median(values), Spread: (values[len(values)-1] - values[0]) / median(values),
		P50: median(of(func(f figures) float64 { return f.p50 })), P99: median(of(func(f figures) float64 { return f.p99 })),
		Allocs: median(of(func(f figures) float64 { return f.allocs })), CPU: median(of(func(f figures) float64 { return f.cpu })),
	}, true
}

// names returns the names that results can have, in the order of the tables.
func names() []string {
	var all []string
	for _, s := range systems() {
		all = append(all, s.name)
	}
	return append(all, plainCalls, brainPart, pusherPart, mappedSystem, copySystem, bareSystem, tunnelSystem, oneHopSystem, raySystem,
		raylinkMemory, redisSystem, rueidisSystem, redisPipelined, pebbleSystem, raylinkNone, gatherSystem, readSystem,
		raylinkUniform, treeSystem, raylinkRemote, reverbSystem, cpprbSystem, raylinkLocal, onePassSystem, onePassRunSystem)
}

func median(sorted []float64) float64 {
	n := len(sorted)
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}

// lines returns all cells, row by row, with their share of the row's floor, or of the faster one if
// there are two.
func (r *results) lines() []line {
	var all []line
	for i := range r.rows {
		row := &r.rows[i]
		first, floor := len(all), 0.0
		for _, name := range names() {
			l, ok := r.line(row, name)
			if !ok {
				continue
			}
			if s, err := systemNamed(name); err == nil && s.floor {
				floor = max(floor, l.Value)
			}
			all = append(all, l)
		}
		for j := first; j < len(all) && floor > 0; j++ {
			all[j].Floor = all[j].Value / floor
			if row.size() {
				all[j].Floor = floor / all[j].Value
			}
		}
	}
	return all
}

// slowFloors lists the rows in which a peer, which does more, is faster than the floor. (RayLink
// may be faster: it busy-polls before it blocks. Of the floors only floor-polling does.)
func slowFloors(lines []line) []string {
	var slow []string
	for _, l := range lines {
		if s, err := systemNamed(l.System); err != nil || !s.peer {
			continue
		}
		if l.Floor > 1 && l.Unit != "bytes each" {
			slow = append(slow, fmt.Sprintf("%s: %s reached %.4g %s, %.3f times the floor", l.Name, l.System, l.Value, l.Unit, l.Floor))
		}
	}
	return slow
}

func printJSON(w io.Writer, lines []line) error {
	e := json.NewEncoder(w)
	for _, l := range lines {
		if err := e.Encode(l); err != nil {
			return err
		}
	}
	return nil
}

func printTable(w io.Writer, lines []line) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	last := ""
	for _, l := range lines {
		if l.Name != last {
			fmt.Fprintf(t, "\n%s\t%s\tp50 us\tp99 us\tcpu us\tallocs\tof floor\tspread\t\n", l.Name, l.Unit)
			last = l.Name
		}
		if l.Missing != "" {
			fmt.Fprintf(t, "%s\tmissing\t\t\t\t\t\t\t %s\n", l.System, l.Missing)
			continue
		}
		share := "-"
		if l.Floor > 0 {
			share = fmt.Sprintf("%.2f", l.Floor)
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%.1f\t%s\t%.0f%%\t\n", l.System,
			number(l.Value), number(l.P50), number(l.P99), number(l.CPU), l.Allocs, share, 100*l.Spread)
	}
	return t.Flush()
}

// number formats a figure with at least three digits and thousands separators.
func number(v float64) string {
	switch {
	case v == 0:
		return "-"
	case v < 10:
		return fmt.Sprintf("%.2f", v)
	case v < 100:
		return fmt.Sprintf("%.1f", v)
	}
	s := fmt.Sprintf("%.0f", v)
	var b strings.Builder
	for i, c := range s {
		if i > 0 && (len(s)-i)%3 == 0 {
			b.WriteByte(',')
		}
		b.WriteRune(c)
	}
	return b.String()
}
