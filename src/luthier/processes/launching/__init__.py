"""One command -> a process for each device: how many, how they meet, how they end."""
