"""What users look at: serving benchmarks compared, and reports."""
