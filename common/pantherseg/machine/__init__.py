"""CPUs, memory and time that a process may use."""
