"""What expert rows travel on: the interface, process groups, NIXL."""
