"""What several layers need: files, random numbers, git, signals, processes, printing."""
