"""The Open Inference Protocol over gRPC: the same answers through another door."""
