"""Training scripts that know nothing of bigqa, as `benchmarks.rehearsing` has them rehearsed."""
