"""What checks the annotations of the package while tests run."""

import beartype

# An int may stand for a float, as type checkers have it.
checked = beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))
