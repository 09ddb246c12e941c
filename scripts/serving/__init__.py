"""Starting real engine servers, driving and stopping them whatever happens: for the demo, benchmarks and tests."""
