"""What a test calls outside of jit, as one program: operation by operation it would compile a hundred small ones."""

import jax
import numpy as np


def compiled(function, *args, **how):
    """function(*args, **how) by one compiled program. What is no array (names, flags, None) stays as it is."""
    leaves, structure = jax.tree.flatten((args, how))
    arrays = {i: x for i, x in enumerate(leaves) if isinstance(x, (jax.Array, np.ndarray, np.generic))}

    def whole(arrays):
        args, how = structure.unflatten([arrays.get(i, x) for i, x in enumerate(leaves)])
        return function(*args, **how)

    return jax.jit(whole)(arrays)
