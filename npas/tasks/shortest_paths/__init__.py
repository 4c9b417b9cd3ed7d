"""Mark the shortest paths through grid mazes."""
