package main

import (
	"fmt"
	"image/color"
	"math"
	"slices"
	"strings"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
)

// plotted lists the rows in the plot, and their labels.
var plotted = []struct{ row, label string }{ //nolint:gochecknoglobals // a table
	{"rpc/unary/16B/inflight=1", "16 B\n1 in flight"},
	{"rpc/unary/16B/inflight=64", "16 B\n64 in flight"},
	{"rpc/unary/16B/inflight=512", "16 B\n512 in flight"},
	{"rpc/unary/64KiB/inflight=64", "64 KiB\n64 in flight"},
	{"rpc/unary/1MiB/inflight=64", "1 MiB\n64 in flight"},
	{"rpc/async/16B/outstanding=10000", "16 B, async\n10,000 outstanding"},
	{"rpc/stream/1KiB", "stream\nof 1 KiB"},
}

// colours are those of the systems, in the order of the legend.
var colours = []struct { //nolint:gochecknoglobals // a table
	system string
	colour color.Color
}{
	{"raylink", color.RGBA{R: 0xd6, G: 0x27, B: 0x28, A: 0xff}},
	{"grpc-go", color.RGBA{R: 0x1f, G: 0x77, B: 0xb4, A: 0xff}},
	{"connect-h1", color.RGBA{R: 0xae, G: 0xc7, B: 0xe8, A: 0xff}},
	{"connect-h2c", color.RGBA{R: 0x98, G: 0xdf, B: 0x8a, A: 0xff}},
	{"drpc", color.RGBA{R: 0xff, G: 0xbb, B: 0x78, A: 0xff}},
	{"floor", color.RGBA{R: 0x7f, G: 0x7f, B: 0x7f, A: 0xff}},
}

// plottedServices lists the rows of the parameter server, of the storage and of the replay in their
// plot, the system that they are compared with, and their labels.
var plottedServices = []struct{ row, system, label string }{ //nolint:gochecknoglobals // a table
	{pullReadLarge, mappedSystem, "pull and read\n256 MiB"},
	{pushLarge, copySystem, "push\n256 MiB"},
	{pushRemote, tunnelSystem, "push from elsewhere\n256 MiB"},
	{deliverMedium, raySystem, "deliver to 4\n32 MiB"},
	{deliverLarge, raySystem, "deliver to 4\n256 MiB"},
	{pushMachines, tunnelSystem, "push to 8 machines\n256 MiB"},
	{pushUplink, oneHopSystem, "the same, 20 MB/s\n32 MiB"},
	{incrCallers, redisSystem, "incr\n50 callers"},
	{incrCallers, rueidisSystem, "incr\n50 callers"},
	{incrConnections, redisSystem, "incr\n50 connections"},
	{incrAsync, redisPipelined, "incr, async\n512 outstanding"},
	{putAsync, raylinkMemory, "put, async\n50 callers"},
	{putSync, pebbleSystem, "put, sync\n64 callers"},
	{writeSmall, copySystem, "write\n1 KiB"},
	{sampleSmall, gatherSystem, "sample 256\n1 KiB"},
	{fourProcesses, plainSystem, "2 writers, 2 readers"},
	{prioritizedKeys, treeSystem, "draw 256\nof 10 million"},
	{updatedKeys, treeSystem, "update 256\nof 10 million"},
	{remoteWrite, tunnelSystem, "write from elsewhere\n1 KiB"},
	{remoteSample, tunnelSystem, "sample from elsewhere\n256 x 1 KiB"},
}

// draw plots throughput as a multiple of grpc-go's; if only the services were measured, as a
// multiple of what their rows are compared with. The file's extension selects the format.
func draw(lines []line, where, path string) error {
	values := make(map[cell]float64)
	for _, l := range lines {
		values[cell{l.Name, l.System}] = l.Value
	}
	if len(lines) > 0 && !slices.ContainsFunc(lines, func(l line) bool { return !ofService(l) }) {
		return drawServices(values, where, path)
	}
	var labels []string
	bars := make([]plotter.Values, len(colours))
	for _, p := range plotted {
		one := values[cell{p.row, "grpc-go"}]
		if one == 0 {
			continue
		}
		labels = append(labels, p.label)
		for i, c := range colours {
			bars[i] = append(bars[i], height(values[cell{p.row, c.system}]/one))
		}
	}
	if len(labels) == 0 {
		return fmt.Errorf("nothing to plot in %s: none of the plotted rows were measured", path)
	}
	p := plot.New()
	p.Title.Text = "Throughput as a multiple of grpc-go's (" + strings.ReplaceAll(where, ", ", ",\u00a0") + ")"
	p.Title.TextStyle.Font.Size = vg.Points(9)
	var ticks []plot.Tick
	for _, v := range []float64{0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200} {
		ticks = append(ticks, plot.Tick{Value: height(v), Label: fmt.Sprintf("%g", v)})
	}
	p.Y.Tick.Marker = plot.ConstantTicks(ticks)
	grid := plotter.NewGrid()
	grid.Vertical.Width = 0
	p.Add(grid)
	p.Legend.Top, p.Legend.Left = true, true
	const width = 8
	for i, c := range colours {
		chart, err := plotter.NewBarChart(bars[i], vg.Points(width))
		if err != nil {
			return err
		}
		chart.Color, chart.LineStyle.Width = c.colour, 0
		chart.Offset = vg.Points(width * (float64(i) - float64(len(colours)-1)/2))
		p.Add(chart)
		p.Legend.Add(c.system, chart)
	}
	p.NominalX(labels...)
	return p.Save(vg.Points(110*float64(len(labels))+60), vg.Points(320), path)
}

// ofService reports whether a line is about the parameter server, the storage or the replay.
func ofService(l line) bool {
	return strings.HasPrefix(l.Name, psPrefix) || strings.HasPrefix(l.Name, storagePrefix) || strings.HasPrefix(l.Name, replayPrefix) ||
		strings.HasPrefix(l.Name, machinesPrefix) || strings.HasPrefix(l.Name, swarmPrefix)
}

func drawServices(values map[cell]float64, where, path string) error {
	var labels []string
	var bars plotter.Values
	for _, p := range plottedServices {
		mine, theirs := values[cell{p.row, "raylink"}], values[cell{p.row, p.system}]
		if mine == 0 || theirs == 0 {
			continue
		}
		labels = append(labels, p.label+"\nof "+p.system)
		bars = append(bars, mine/theirs)
	}
	if len(labels) == 0 {
		return fmt.Errorf("nothing to plot in %s: no row of a service was measured with what it is compared with", path)
	}
	p := plot.New()
	p.Title.Text = "The services' throughput as a multiple of others' (" + strings.ReplaceAll(where, ", ", ",\u00a0") + ")"
	p.Title.TextStyle.Font.Size = vg.Points(9)
	grid := plotter.NewGrid()
	grid.Vertical.Width = 0
	chart, err := plotter.NewBarChart(bars, vg.Points(24))
	if err != nil {
		return err
	}
	chart.Color, chart.LineStyle.Width = colours[0].colour, 0
	p.Y.Min = 0
	p.Add(grid, chart)
	p.NominalX(labels...)
	return p.Save(vg.Points(110*float64(len(labels))+60), vg.Points(320), path)
}

// lowest is the origin of the plot's axis.
const lowest = 0.1

// height returns the height of a bar. The axis is logarithmic, which the library does not support
// for bars.
func height(multiple float64) float64 { return max(0, math.Log10(multiple/lowest)) }
