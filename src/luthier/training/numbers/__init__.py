"""Numbers that are none: found in their step, told with the rows they came from, never saved."""
