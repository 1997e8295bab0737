"""Benchmarks: cases under bench/cases, run by `python -m bench`."""
