"""What of the GPU's path needs torch alone: `make test-torch` on a CPU, `make test-cuda` on a GPU."""
