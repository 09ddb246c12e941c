"""What the plugin relies on in code that it does not own, checked against the wheels that users install.

Nothing of theirs is imported: a wheel for GPUs cannot be on a machine without one. Files are parsed (`sources`), what
the plugin does with them is read from its own files (`uses`) and a table (`table`), and `check` compares the two.
"""
