"""A model, not a measurement: what measured copies and balance would be worth on GPUs with NVLink and RDMA."""
