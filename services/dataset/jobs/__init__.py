"""Long work: what a task loads before its engine runs, and how the result becomes rows."""
