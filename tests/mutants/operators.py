"""An operator that cosmic-ray lacks: a statement is not executed. In: parso's nodes. Out: `DropStatement`.

Calls for their effect, changes in place and assignments to attributes and items; a plain name that is never assigned
fails on its own, which shows nothing.
"""

import parso
from cosmic_ray.operators.operator import Example, Operator


class DropStatement(Operator):
    """Replace a statement by `pass`."""

    def mutation_positions(self, node):
        """Give the place of a statement that can be dropped."""
        if _has_effect(node):
            yield node.start_pos, node.end_pos

    def mutate(self, node, index):
        """Return a node that says `pass` in the place of the statement."""
        return parso.parse(f"{node.get_first_leaf().prefix}pass").children[0]

    @classmethod
    def examples(cls):
        """Show it."""
        return (Example("f(x)", "pass"), Example("x.a = 1", "pass"), Example("x += 1", "pass"))


def _has_effect(node) -> bool:
    if node.parent is None or node.parent.type != "simple_stmt":
        return False
    if node.type == "expr_stmt":
        target, sign = node.children[0], node.children[1]
        return sign.type in ("operator", "augassign") and (
            sign.type == "augassign" or sign != "=" or target.type != "name"
        )
    return node.type in ("atom_expr", "power") and node.children[-1].type == "trailer"
