"""Several devices on one picture: measured by ``python -m benchmarks.parallel``, estimated where none was measured."""
