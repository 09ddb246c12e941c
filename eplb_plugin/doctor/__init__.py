"""Checks of what only accelerators show: `eplb-plugin doctor --gpu`; on several, `python -m eplb_plugin.doctor`."""
