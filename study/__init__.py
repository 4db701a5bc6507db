"""Many runs: grid, executor, results, report."""
