package raylink

import (
	"log/slog"
	"time"

	"github.com/raylink/raylink/runtime"
)

// WithBrain joins the Brain at an address, HOST:PORT, instead of embedding one. See
// [Options].Brain.
func WithBrain(address string) Option { return runtime.WithBrain(address) }

// WithBrainFromEnvironment makes Start join the Brain that RAYLINK_BRAIN names, if it is set, as
// Init does.
func WithBrainFromEnvironment() Option { return runtime.WithBrainFromEnvironment() }

// WithListen listens at an address, HOST:PORT; port 0 stands for a free one. See [Options].Listen.
func WithListen(address string) Option { return runtime.WithListen(address) }

// WithAdvertise has other processes connect to an address that differs from the one listened at.
// See [Options].Advertise.
func WithAdvertise(address string) Option { return runtime.WithAdvertise(address) }

// WithToken sets the secret that both sides of every connection must know. See [Options].Token.
func WithToken(token string) Option { return runtime.WithToken(token) }

// WithOpen makes or joins a system without a token: every user of the machine has full access. See
// [Options].Open.
func WithOpen() Option { return runtime.WithOpen() }

// WithInsecure allows unencrypted connections beyond loopback. See [Options].Insecure.
func WithInsecure() Option { return runtime.WithInsecure() }

// WithTLS encrypts connections on loopback, too, as they are beyond it. See [Options].TLS.
func WithTLS() Option { return runtime.WithTLS() }

// WithOwnPKI uses an organisation's certificates: this host's, its key, and the CAs of others. See
// [Options].TLSCert.
func WithOwnPKI(cert, key, ca string) Option { return runtime.WithOwnPKI(cert, key, ca) }

// WithPortRange listens on one of the ports FIRST-LAST. See [Options].PortRange.
func WithPortRange(ports string) Option { return runtime.WithPortRange(ports) }

// WithOrigins lets pages of browser origins, such as https://app.example.com, call nodes. See
// [Options].Origins.
func WithOrigins(origins ...string) Option { return runtime.WithOrigins(origins...) }

// WithCompression compresses HTTP responses to clients on other machines. See
// [Options].Compression.
func WithCompression() Option { return runtime.WithCompression() }

// WithData keeps run directories in a directory. See [Options].Data.
func WithData(directory string) Option { return runtime.WithData(directory) }

// WithLogger sends log records to a logger instead of standard error. See [Options].Logger.
func WithLogger(logger *slog.Logger) Option { return runtime.WithLogger(logger) }

// WithMachine describes the machine that this process is on. See [Options].Machine.
func WithMachine(m runtime.MachineOptions) Option { return runtime.WithMachine(m) }

// WithKeepRuns sets how many run directories are kept. See [Options].KeepRuns.
func WithKeepRuns(n int) Option { return runtime.WithKeepRuns(n) }

// WithOutput passes each line that a node's process prints to a function. See [Options].Output.
func WithOutput(output func(path, line string)) Option { return runtime.WithOutput(output) }

// WithInterceptor wraps the serving of every call; the first interceptor is the outermost. See
// [Options].Interceptors.
func WithInterceptor(interceptors ...runtime.Interceptor) Option {
	return runtime.WithInterceptor(interceptors...)
}

// WithClientInterceptor wraps the making of every call by this process; the first interceptor is
// the outermost. See [Options].ClientInterceptors.
func WithClientInterceptor(interceptors ...runtime.ClientInterceptor) Option {
	return runtime.WithClientInterceptor(interceptors...)
}

// WithEventListener notifies a listener of what happens to this process's nodes, connections and
// calls. See [Options].Events.
func WithEventListener(listener runtime.EventListener) Option {
	return runtime.WithEventListener(listener)
}

// WithHiddenErrors logs the texts of plain errors instead of sending them to callers. See
// [Options].HideErrors.
func WithHiddenErrors() Option { return runtime.WithHiddenErrors() }

// WithInProcess creates nodes in the process of their parent by default. See [Options].InProcess.
func WithInProcess() Option { return runtime.WithInProcess() }

// WithDrain bounds how long stopping a node waits for its running calls. See [Options].Drain.
func WithDrain(d time.Duration) Option { return runtime.WithDrain(d) }

// WithStartTimeout bounds the time from a node process's start to its call of Init. See
// [Options].StartTimeout.
func WithStartTimeout(d time.Duration) Option { return runtime.WithStartTimeout(d) }

// WithLease sets how long a host may be silent before it is declared dead. See [Options].Lease.
func WithLease(d time.Duration) Option { return runtime.WithLease(d) }

// WithMaxMessage bounds one message, in bytes. See [Options].MaxMessage.
func WithMaxMessage(bytes int) Option { return runtime.WithMaxMessage(bytes) }

// WithBusyPoll sets how long a reader polls its connection before it parks. See [Options].BusyPoll.
func WithBusyPoll(d time.Duration) Option { return runtime.WithBusyPoll(d) }

// WithHeapFloor makes garbage collections rarer in processes with a small heap. See
// [Options].HeapFloor.
func WithHeapFloor(bytes int) Option { return runtime.WithHeapFloor(bytes) }
