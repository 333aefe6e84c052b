"""A person's own training command on a GPU that is not there: what it needs, told by torch itself."""
