"""What this machine gives a process: CPUs, memory, time."""
