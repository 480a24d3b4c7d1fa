"""Where a run is kept, on a disk or in a bucket: files, checkpoints, the run directory."""
