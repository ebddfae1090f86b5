"""What is learned: one small object for each training stage."""
