"""What `algorithms.sweep` and `algorithms.walk_forward` are made of: points, jobs, processes, files."""
