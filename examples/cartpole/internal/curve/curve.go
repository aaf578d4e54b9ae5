// Package curve plots a learning curve: the return as a function of the number of steps.
package curve

import (
	"fmt"
	"image/color"
	"math"
	"os"
	"path/filepath"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
)

// Point is a mean return after a number of environment steps.
type Point struct {
	Steps  uint64
	Return float64
}

// Curve is the data of the plot.
type Curve struct {
	Title string
	// Training are the returns of the exploring workers.
	Training []Point
	// Exams are the returns of greedy evaluations.
	Exams []Point
	// Goal is the return at which the task is solved, and Best the maximum return.
	Goal, Best float64
}

// window is the number of points of Training in the moving average.
const window = 20

// WritePNG writes the plot to a file atomically: on failure, the previous content is unchanged.
func (c Curve) WritePNG(path string) (err error) {
	picture, err := c.plot()
	if err != nil {
		return fmt.Errorf("plot learning curve: %w", err)
	}
	png, err := picture.WriterTo(20*vg.Centimeter, 12*vg.Centimeter, "png")
	if err != nil {
		return fmt.Errorf("plot learning curve: %w", err)
	}
	file, err := os.CreateTemp(filepath.Dir(path), ".curve-*.png")
	if err != nil {
		return fmt.Errorf("write learning curve: %w", err)
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("write learning curve: %w", err)
			_ = os.Remove(file.Name()) // the first error is returned
		}
	}()
	if _, err = png.WriteTo(file); err != nil {
		_ = file.Close() // the first error is returned
		return err
	}
	if err = file.Close(); err != nil {
		return err
	}
	return os.Rename(file.Name(), path)
}

func (c Curve) plot() (*plot.Plot, error) {
	var (
		grey   = color.RGBA{R: 0xbb, G: 0xbb, B: 0xbb, A: 0xff}
		blue   = color.RGBA{R: 0x1f, G: 0x77, B: 0xb4, A: 0xff}
		orange = color.RGBA{R: 0xff, G: 0x7f, B: 0x0e, A: 0xff}
	)
	p := plot.New()
	p.Title.Text = c.Title
	p.X.Label.Text = "environment steps"
	p.Y.Label.Text = "return"
	p.X.Min, p.Y.Min, p.Y.Max = 0, 0, c.Best*1.05
	p.Y.Tick.Marker = hundreds{}
	p.Legend.YOffs, p.Legend.XOffs = vg.Points(4), -vg.Points(4)
	p.Add(plotter.NewGrid())

	goal := plotter.NewFunction(func(float64) float64 { return c.Goal })
	goal.Color, goal.Dashes = color.Black, []vg.Length{vg.Points(4), vg.Points(3)}
	p.Add(goal)
	p.Legend.Add(fmt.Sprintf("solved at %g", c.Goal), goal)

	if len(c.Training) > 0 {
		raw, err := plotter.NewScatter(points(c.Training))
		if err != nil {
			return nil, err
		}
		raw.GlyphStyle = draw.GlyphStyle{Color: grey, Radius: vg.Points(1), Shape: draw.CircleGlyph{}}
		mean, err := plotter.NewLine(points(smooth(c.Training)))
		if err != nil {
			return nil, err
		}
		mean.Color, mean.Width = blue, vg.Points(1.5)
		p.Add(raw, mean)
		p.Legend.Add("workers, exploring", mean)
	}
	if len(c.Exams) > 0 {
		line, dots, err := plotter.NewLinePoints(points(c.Exams))
		if err != nil {
			return nil, err
		}
		line.Color, dots.Color, dots.Shape = orange, orange, draw.CircleGlyph{}
		p.Add(line, dots)
		p.Legend.Add("greedy evaluation", line, dots)
	}
	return p, nil
}

// hundreds places ticks at multiples of a hundred.
type hundreds struct{}

// Ticks implements [plot.Ticker].
func (hundreds) Ticks(low, high float64) []plot.Tick {
	var ticks []plot.Tick
	for v := math.Ceil(low/100) * 100; v <= high; v += 100 {
		ticks = append(ticks, plot.Tick{Value: v, Label: fmt.Sprintf("%.0f", v)})
	}
	return ticks
}

func points(from []Point) plotter.XYs {
	xys := make(plotter.XYs, len(from))
	for i, p := range from {
		xys[i] = plotter.XY{X: float64(p.Steps), Y: p.Return}
	}
	return xys
}

// smooth returns the moving average.
func smooth(from []Point) []Point {
	to := make([]Point, len(from))
	sum, oldest := 0.0, 0
	for i, p := range from {
		sum += p.Return
		if i-oldest == window {
			sum -= from[oldest].Return
			oldest++
		}
		to[i] = Point{Steps: p.Steps, Return: sum / float64(i-oldest+1)}
	}
	return to
}
