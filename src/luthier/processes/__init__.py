"""how ranks start, meet, are asked to stop, and end."""
