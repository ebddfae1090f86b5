"""data sets looked at row by row: what is wrong, how long rows are, what stands twice."""
