"""What quotas reach in single steps under a placement, and changes of it by which they reach more."""
