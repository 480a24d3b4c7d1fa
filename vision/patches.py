"""Images as rows of patches, and where in the picture a patch is: fixed sine and cosine positions, resized tables."""

import jax.numpy as jnp
import numpy as np

from paradigm.attention import diagonals
from paradigm.errors import UserError


def grid_of(height, width, patch):
    """(rows, columns) of patches; what is left over at the right and at the bottom is not read, as by a convolution.

    Raises:
        UserError: when not one patch fits into the image.
    """
    if min(height, width) < patch:
        raise UserError(
            f"an image of {height} x {width} is smaller than a patch of {patch} x {patch}: choose a larger image_size, "
            "or a smaller patch"
        )
    return height // patch, width // patch


def patchify(images, patch):
    """[B, H, W, C] -> [B, N, P]: patches row by row; in a patch rows, columns, then channels (P = patch * patch * C).

    The order of `MaskedAutoencoderViT.patchify` in the official code of He et al. 2022. Raises as `grid_of`.
    """
    b, height, width, c = images.shape
    rows, columns = grid_of(height, width, patch)
    whole = images[:, : rows * patch, : columns * patch]
    x = whole.reshape(b, rows, patch, columns, patch, c).swapaxes(2, 3)  # [B, rows, columns, patch, patch, C]
    return x.reshape(b, rows * columns, patch * patch * c)


def unpatchify(patches, patch, shape):
    """The inverse of `patchify` where patches divide the image: [B, N, P] -> [B, H, W, C], shape = (H, W, C)."""
    height, width, c = shape
    rows, columns = grid_of(height, width, patch)
    x = patches.reshape(-1, rows, columns, patch, patch, c).swapaxes(2, 3)  # [B, rows, patch, columns, patch, C]
    return x.reshape(-1, height, width, c)


# ---- Positions -------------------------------------------------------------------------------------------------------


def sincos(width, rows, columns, nominal=None):
    """Fixed two-dimensional positions, float32 [rows * columns, width] (numpy): [sin x, cos x, sin y, cos y].

    x is a patch's column and y its row, each times the frequencies 10000 ** (-k / (width / 4)): the official MAE's
    get_2d_sincos_pos_embed. MoCo v3's table, [sin y, cos y, sin x, cos x], is the same up to the order of features.

    Args:
        nominal: (rows, columns) of the grid that a model was trained on. Another grid is laid over the same square:
            its patches have fractions of the nominal coordinates, which interpolating the table would approximate.

    Raises:
        UserError: when width is not a multiple of 4.
    """
    if width % 4:
        near = max(4, round(width / 4) * 4)
        raise UserError(f"sincos positions need a width divisible by 4, and it is {width}: choose {near}, or 'learned'")
    frequencies = 10000.0 ** (-np.arange(width // 4) / (width // 4))
    y, x = (_centres(n, n if nominal is None else m) for n, m in zip((rows, columns), nominal or (rows, columns)))
    y, x = (a.ravel()[:, None] * frequencies for a in np.meshgrid(y, x, indexing="ij"))  # [N, width / 4]
    return np.concatenate([np.sin(x), np.cos(x), np.sin(y), np.cos(y)], 1).astype(np.float32)


def _centres(count, nominal):
    """Centres of `count` equal parts of a side that is `nominal` patches long; patch 0's centre is 0."""
    return (np.arange(count) + 0.5) * (nominal / count) - 0.5


def resize_table(table, old, new, antialias=False):
    """Learned positions [rows * columns, D] of the grid `old` for the grid `new`, by bicubic interpolation.

    As torch's interpolate(mode="bicubic", align_corners=False): in DINO and most of the transformers library without
    antialiasing, with it in DINOv2 with registers and timm. Written as two products with small constant matrices, so
    that it needs no gather on any mesh.
    """
    if tuple(old) == tuple(new):
        return table
    down, across = (_cubic(n, m, antialias) for n, m in zip(new, old))
    grid = table.reshape(*old, -1)
    y = jnp.einsum("nr,mc,rcd->nmd", down, across, grid, precision="highest")
    return y.reshape(new[0] * new[1], -1).astype(table.dtype)


def relative_entries(rows, columns):
    """Rows of a table of relative positions: one for each displacement of two patches, and three (`relative_bias`)."""
    return (2 * rows - 1) * (2 * columns - 1) + 3


def relative_bias(table, nominal, grid, prefix):
    """BEiT's bias on attention logits by the displacement of two patches: [..., H, L, L], L = prefix + N.

    Bao et al. 2022, section 2.3 ("shared relative position bias"); the layout is that of the official code's
    RelativePositionBias (unilm/beit, modeling_finetune.py). Entry (dy + rows - 1) * (2 columns - 1) + dx + columns - 1
    of the table is for a query that lies dy rows below its key and dx columns to its right. The last three are for a
    class token's look at patches, a patch's look at the class token, and the class token's look at itself; registers
    have those of the class token.

    Args:
        table: [..., relative_entries(*nominal), H]. nominal: (rows, columns) of its grid.
        grid: of the picture. Another one has the displacements' table interpolated, bicubic, as in `resize_table`.
        prefix: tokens before the patches.
    """
    size = lambda g: tuple(2 * n - 1 for n in g)
    table = jnp.moveaxis(table, -1, -2)  # [..., H, entries]
    near, tokens = table[..., :-3], table[..., -3:, None, None]
    if tuple(grid) != tuple(nominal):
        flat = near.reshape(-1, near.shape[-1]).T  # [entries, ... H]
        near = resize_table(flat, size(nominal), size(grid)).T.reshape(*near.shape[:-1], -1)
    rows, columns = grid
    x = near.reshape(*near.shape[:-1], *size(grid))[..., ::-1, ::-1]  # by the key's place less the query's
    x = diagonals(x, columns)  # [..., H, dy, query's column, key's]
    x = diagonals(jnp.moveaxis(x, -3, -1), rows)  # [..., H, query's column, key's, query's row, key's]
    n = x.ndim
    x = x.transpose(*range(n - 4), n - 2, n - 4, n - 1, n - 3).reshape(*x.shape[:-4], rows * columns, rows * columns)
    if not prefix:
        return x
    looks = lambda k, *shape: jnp.broadcast_to(tokens[..., k, :, :], (*x.shape[:-2], *shape))
    first = jnp.concatenate([looks(2, prefix, prefix), looks(0, prefix, rows * columns)], -1)
    return jnp.concatenate([first, jnp.concatenate([looks(1, rows * columns, prefix), x], -1)], -2)


def _cubic(new, old, antialias):
    """Weights float32 [new, old] of cubic interpolation (Keys 1981, equation 4), edges repeated; with antialias as wide
    as what it stands for, and cut off at the edges. Each has torch's a."""
    a, width = (-0.5, max(old / new, 1.0)) if antialias else (-0.75, 1.0)
    at = (np.arange(new) + 0.5) * (old / new) - 0.5
    d = np.abs(at[:, None] - np.arange(-2, old + 2)) / width
    near = (a + 2) * d**3 - (a + 3) * d**2 + 1
    far = a * (d**3 - 5 * d**2 + 8 * d - 4)
    weights = np.where(d <= 1, near, np.where(d < 2, far, 0.0))
    before, inside, behind = np.split(weights, (2, old + 2), 1)
    if not antialias:
        inside[:, 0] += before.sum(1)
        inside[:, -1] += behind.sum(1)
    return (inside / inside.sum(1, keepdims=True)).astype(np.float32)
