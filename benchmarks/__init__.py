"""Side-by-side measurements of saeval against eai-delphi and against the limit of the machine; see
docs/benchmarks.md."""
