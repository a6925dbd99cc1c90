"""What a request costs in the client: `python -m benchmarks.run`. See README.md."""
