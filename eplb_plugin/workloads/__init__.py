"""Made-up routing for tests and demos."""
