"""What runs inside a rehearsed command: looks on, writes down, ends it. Needs nothing but Python and torch.

Imports: nothing of bigqa.
"""
