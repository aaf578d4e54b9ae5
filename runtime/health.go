package runtime

import (
	"context"

	"connectrpc.com/connect/v2"

	healthv1 "github.com/raylink/raylink/gen/raylink/health/v1"
)

// healthService is the name of gRPC's health service, which every host answers.
const healthService = "grpc.health.v1.Health"

// mountHealth answers for the host as a whole (the empty service) and for each service that it can host.
func mountHealth(server *connect.Server, h *Host) {
	server.Register(
		connect.Method{
			Spec: connect.Spec{
				StreamType: connect.StreamTypeUnary, Procedure: "/" + healthService + "/Check", IdempotencyLevel: connect.IdempotencyNoSideEffects,
			},
			Handler: func(_ context.Context, _ connect.Spec, stream connect.ServerStream) error {
				var req healthv1.HealthCheckRequest
				if err := stream.Receive(&req); err != nil {
					return err
				}
				status := h.health(req.GetService())
				if status == healthv1.HealthCheckResponse_SERVICE_UNKNOWN {
					return connect.Errorf(connect.CodeNotFound, "this host has no service %q", req.GetService())
				}
				return stream.Send(&healthv1.HealthCheckResponse{Status: status})
			},
		},
		connect.Method{
			Spec: connect.Spec{
				StreamType: connect.StreamTypeUnary, Procedure: "/" + healthService + "/List", IdempotencyLevel: connect.IdempotencyNoSideEffects,
			},
			Handler: func(_ context.Context, _ connect.Spec, stream connect.ServerStream) error {
				if err := stream.Receive(&healthv1.HealthListRequest{}); err != nil {
					return err
				}
				return stream.Send(h.healthOfAll())
			},
		},
		connect.Method{
			Spec: connect.Spec{
				StreamType: connect.StreamTypeServer, Procedure: "/" + healthService + "/Watch", IdempotencyLevel: connect.IdempotencyNoSideEffects,
			},
			Handler: func(ctx context.Context, _ connect.Spec, stream connect.ServerStream) error {
				var req healthv1.HealthCheckRequest
				if err := stream.Receive(&req); err != nil {
					return err
				}
				if err := stream.Send(&healthv1.HealthCheckResponse{Status: h.health(req.GetService())}); err != nil {
					return err
				}
				// The state changes once: when the host ends.
				select {
				case <-ctx.Done():
					return causeOf(ctx)
				case <-h.life.Done():
					return stream.Send(&healthv1.HealthCheckResponse{Status: healthv1.HealthCheckResponse_NOT_SERVING})
				}
			},
		},
	)
}

// healthOfAll is the health of the host and of all services that it can host.
func (h *Host) healthOfAll() *healthv1.HealthListResponse {
	res := &healthv1.HealthListResponse{Statuses: make(map[string]*healthv1.HealthCheckResponse)}
	for _, name := range []string{"", healthService, builtins().service.name} {
		res.Statuses[name] = &healthv1.HealthCheckResponse{Status: h.health(name)}
	}
	for _, s := range h.types.services() {
		res.Statuses[s.name] = &healthv1.HealthCheckResponse{Status: h.health(s.name)}
	}
	return res
}

func (h *Host) health(service string) healthv1.HealthCheckResponse_ServingStatus {
	if h.life.Err() != nil || h.isClosing() {
		return healthv1.HealthCheckResponse_NOT_SERVING
	}
	if service == "" || service == healthService || service == builtins().service.name {
		return healthv1.HealthCheckResponse_SERVING
	}
	for _, s := range h.types.services() {
		if s.name == service {
			return healthv1.HealthCheckResponse_SERVING
		}
	}
	return healthv1.HealthCheckResponse_SERVICE_UNKNOWN
}
