"""Decoder graphs in OpenVINO opset, and the weights they are made of."""
