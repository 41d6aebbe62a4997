"""The gRPC service of an engine: proto <-> types, errors -> statuses. `briton/v1` is generated beside it."""
