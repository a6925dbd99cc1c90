"""The governor against real sockets and a real engine: ``python -m benchmarks.live``."""
