"""Telemetry of every process: OpenTelemetry traces, metrics and logs, sent by OTLP to aiops."""

from libs.common.obs.telemetry import Telemetry, extract, inject, meter, setup_telemetry, traceparent, tracer

__all__ = ["Telemetry", "extract", "inject", "meter", "setup_telemetry", "traceparent", "tracer"]
