"""Benchmarks: ``make bench``. Ratios against anchors measured in the same run."""
