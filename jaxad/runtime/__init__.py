"""What a long run stands on: checkpoints, run directories, memory, devices, processes, clusters."""
