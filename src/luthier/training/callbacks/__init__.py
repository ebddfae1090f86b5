"""What hears of steps: the progress on the terminal and the log file."""
