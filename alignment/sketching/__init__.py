"""Graph networks trained on sketches: hashes, count and tensor sketches, sketched convolutions and layers."""
