"""What can be said about a task before it runs: its type from its text, and how complex it is."""
