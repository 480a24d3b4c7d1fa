"""MaskFeat: Wei et al. 2022, "Masked Feature Prediction for Self-Supervised Visual Pre-Training".

Blocks of 40 % of the patches are behind a mask token; one linear layer predicts their histograms of oriented gradients
(section 3.3): for each channel 9 bins in cells of 8 x 8 pixels, each histogram of length 1.

    loss = mean over hidden patches of the mean squared difference                                     (section 3.1)
"""

import dataclasses

from paradigm.errors import UserError
from vision.hog import hog
from vision.objectives.masked_images import MaskedRegression


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskFeat(MaskedRegression):
    """HOG of hidden patches. cell: pixels a side of a histogram, which divide a patch. bins: of directions. window:
    pixels a side of Gaussian weights, 0 for none: the official model has none.

    Raises UserError when cells do not divide a patch, or windows the picture.
    """

    masking: str = "block"
    mask_ratio: float = 0.4
    cell: int = 8
    bins: int = 9
    window: int = 0

    def __post_init__(self):
        super().__post_init__()
        if self.encoder.patch % self.cell:
            raise UserError(
                f"MaskFeat.cell={self.cell} does not divide a patch of {self.encoder.patch}: choose one that does"
            )
        if self.window and self.encoder.image_size % self.window:
            raise UserError(
                f"MaskFeat.window={self.window} does not divide an image_size of {self.encoder.image_size}: choose one "
                "that does, or 0 for no Gaussian"
            )

    @property
    def outputs(self):
        return (self.encoder.patch // self.cell) ** 2 * self.encoder.channels * self.bins

    def target(self, images):
        x = hog(images, self.cell, self.bins, self.window)  # [B, rows, columns, C, bins] of cells
        (rows, columns), n = self.encoder.grid, self.encoder.patch // self.cell
        x = x.reshape(len(x), rows, n, columns, n, -1).swapaxes(2, 3)
        return x.reshape(len(x), rows * columns, self.outputs)
