package runtime

import (
	"context"
	"slices"

	"connectrpc.com/connect/v2"

	healthv1 "github.com/raylink/raylink/gen/raylink/health/v1"
	"github.com/raylink/raylink/internal/nodename"
)

// healthService is the name of gRPC's health service, which every host has.
const healthService = "grpc.health.v1.Health"

// Load balancers and Kubernetes probe these with plain GETs, without a token.
const (
	// livePath responds with 200 as long as the process serves at all.
	livePath = "/livez"
	// readyPath and healthPath report gRPC's health of the host as a whole.
	readyPath  = "/readyz"
	healthPath = "/healthz"
)

func isProbe(path string) bool { return path == livePath || path == readyPath || path == healthPath }

// isPublicProcedure reports whether a procedure can be called without a token.
func isPublicProcedure(procedure string) bool {
	service, method, _ := nodename.CutProcedure(procedure)
	return service == healthService && (method == "Check" || method == "List" || method == "Watch")
}

// mountHealth registers the health of the host as a whole (the empty service) and of each service
// that it can host. Callers without a token see only that of the host as a whole.
func mountHealth(server *connect.Server, h *Host) {
	method := func(name string, streams connect.StreamType, handler connect.ServerFunc) connect.Method {
		return connect.Method{Handler: handler, Spec: connect.Spec{
			StreamType: streams, Procedure: nodename.Procedure(healthService, name), IdempotencyLevel: connect.IdempotencyNoSideEffects,
		}}
	}
	server.Register(
		method("Check", connect.StreamTypeUnary, h.checkHealth),
		method("List", connect.StreamTypeUnary, h.listHealth),
		method("Watch", connect.StreamTypeServer, h.watchHealth),
	)
}

func (h *Host) checkHealth(ctx context.Context, _ connect.Spec, stream connect.ServerStream) error {
	var req healthv1.HealthCheckRequest
	if err := stream.Receive(&req); err != nil {
		return err
	}
	status := h.healthFor(ctx, req.GetService())
	if status == healthv1.HealthCheckResponse_SERVICE_UNKNOWN {
		return connect.Errorf(connect.CodeNotFound, "this host has no service %q", req.GetService())
	}
	return stream.Send(&healthv1.HealthCheckResponse{Status: status})
}

func (h *Host) listHealth(ctx context.Context, _ connect.Spec, stream connect.ServerStream) error {
	if err := stream.Receive(new(healthv1.HealthListRequest)); err != nil {
		return err
	}
	statuses := make(map[string]*healthv1.HealthCheckResponse)
	for _, service := range append(h.serviceNames(), "") {
		if status := h.healthFor(ctx, service); status != healthv1.HealthCheckResponse_SERVICE_UNKNOWN {
			statuses[service] = &healthv1.HealthCheckResponse{Status: status}
		}
	}
	return stream.Send(&healthv1.HealthListResponse{Statuses: statuses})
}

// watchHealth sends the state at once, and once more when it changes, which is final. Then the
// stream ends.
func (h *Host) watchHealth(ctx context.Context, _ connect.Spec, stream connect.ServerStream) error {
	var req healthv1.HealthCheckRequest
	if err := stream.Receive(&req); err != nil {
		return err
	}
	status := h.healthFor(ctx, req.GetService())
	if err := stream.Send(&healthv1.HealthCheckResponse{Status: status}); err != nil {
		return err
	}
	if status == healthv1.HealthCheckResponse_NOT_SERVING {
		return nil
	}
	var failed <-chan struct{}
	if req.GetService() == "" {
		failed = h.brainFailed()
	}
	select {
	case <-h.ending:
		return stream.Send(&healthv1.HealthCheckResponse{Status: healthv1.HealthCheckResponse_NOT_SERVING})
	case <-failed:
		return stream.Send(&healthv1.HealthCheckResponse{Status: healthv1.HealthCheckResponse_NOT_SERVING})
	case <-ctx.Done():
		return causeOf(ctx)
	}
}

// healthFor is the state of a service, as far as the caller may see it.
func (h *Host) healthFor(ctx context.Context, service string) healthv1.HealthCheckResponse_ServingStatus {
	if service != "" && isAnonymous(ctx) {
		return healthv1.HealthCheckResponse_SERVICE_UNKNOWN
	}
	return h.health(service)
}

// health is the state of the host as a whole (""), or of one service. The host as a whole is also
// not serving when an embedded Brain can no longer store changes. A host that has lost a remote
// Brain is serving: its nodes respond, and otherwise all hosts would become not ready at once.
func (h *Host) health(service string) healthv1.HealthCheckResponse_ServingStatus {
	select {
	case <-h.ending:
		return healthv1.HealthCheckResponse_NOT_SERVING
	case <-h.life.Done():
		return healthv1.HealthCheckResponse_NOT_SERVING
	default:
	}
	if service == "" {
		select {
		case <-h.brainFailed():
			return healthv1.HealthCheckResponse_NOT_SERVING
		default:
		}
		return healthv1.HealthCheckResponse_SERVING
	}
	if slices.Contains(h.serviceNames(), service) {
		return healthv1.HealthCheckResponse_SERVING
	}
	return healthv1.HealthCheckResponse_SERVICE_UNKNOWN
}

// brainFailed is closed when the store of an embedded Brain has failed; nil if there is none.
func (h *Host) brainFailed() <-chan struct{} {
	if h.embedded == nil {
		return nil
	}
	return h.embedded.Failed()
}

// serviceNames are the services whose health the host reports.
func (h *Host) serviceNames() []string {
	services := h.types.services()
	names := make([]string, 0, 2+len(services))
	names = append(names, healthService, builtins().service.name)
	for _, s := range services {
		names = append(names, s.name)
	}
	return names
}

// isAnonymous reports whether a call came without a token to a system that has one.
func isAnonymous(ctx context.Context) bool {
	anonymous, _ := ctx.Value(anonymousKey{}).(bool)
	return anonymous
}

type anonymousKey struct{}
