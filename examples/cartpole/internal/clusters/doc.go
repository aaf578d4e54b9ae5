// Package clusters has the tests that train CartPole on clusters, which `make demo-slurm` runs for
// people to watch.
package clusters
