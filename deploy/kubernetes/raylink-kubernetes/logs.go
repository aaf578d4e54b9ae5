package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// copyLog copies the log of the program to w until it ends. When the connection is lost, it goes on
// after the last line, by the times of the lines.
func (c *cluster) copyLog(ctx context.Context, pod string, isOver func() bool, w io.Writer) error {
	var last time.Time
	for {
		options := &corev1.PodLogOptions{Container: driverContainer, Follow: true, Timestamps: true}
		if !last.IsZero() {
			since := metav1.NewTime(last) // of whole seconds
			options.SinceTime = &since
		}
		wasOver := isOver()
		stream, err := c.client.CoreV1().Pods(c.namespace).GetLogs(pod, options).Stream(ctx)
		if err == nil {
			last, err = copyLines(w, stream, last)
			err = errors.Join(err, stream.Close())
		}
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case wasOver && err == nil, apierrors.IsNotFound(err):
			return nil
		case apierrors.IsForbidden(err):
			return fmt.Errorf("reading the log of the program: %w", err)
		}
		select {
		case <-time.After(poll):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// copyLines copies the lines that are later than last, without their times.
func copyLines(w io.Writer, from io.Reader, last time.Time) (time.Time, error) {
	r := bufio.NewReader(from)
	for {
		line, err := r.ReadString('\n')
		if stamp, text, ok := strings.Cut(line, " "); ok {
			at, perr := time.Parse(time.RFC3339Nano, stamp)
			if perr != nil {
				at, text = last.Add(1), line
			}
			if at.After(last) {
				last = at
				if _, werr := io.WriteString(w, text); werr != nil {
					return last, werr
				}
			}
		}
		if errors.Is(err, io.EOF) {
			return last, nil
		}
		if err != nil {
			return last, err
		}
	}
}
