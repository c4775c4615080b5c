"""Benchmarks. Their results are in bench/results."""
