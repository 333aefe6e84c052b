"""What bigqa is measured against, written as their users write them."""
