"""Lock files: the shapes of all stored messages, kept in the repository."""
