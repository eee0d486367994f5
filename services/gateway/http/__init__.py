"""HTTP on the outside, gRPC on the inside: routes, proto JSON, server-sent events, uploads and the OpenAI API."""
