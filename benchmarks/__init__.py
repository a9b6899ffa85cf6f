"""What is measured, and what is proved at length: ``benchmarks.run`` and ``benchmarks.proof`` (docs/performance.md)."""
