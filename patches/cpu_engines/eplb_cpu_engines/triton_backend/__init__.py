"""A Triton backend named `cpu`, found by its entry point, in which no kernel is ever compiled: they are interpreted.

vLLM's CPU build asks whether there is one before it uses Triton, and Triton asks its backend for a device. Only where
TRITON_DEFAULT_BACKEND names it does it say that it is active: beside a GPU's backend it stays out of the way.
"""

ENVIRONMENT = {"TRITON_DEFAULT_BACKEND": "cpu", "TRITON_INTERPRET": "1"}
