"""What the objectives that train a tokenizer share: its three modules, its codebook's use, its reconstructions."""

import dataclasses

import jax
import jax.numpy as jnp

from paradigm.capabilities import Reconstructing, Tokenizing
from paradigm.errors import UserError
from vision.objectives.masked_images import OneView
from vision.patches import unpatchify
from vision.tokenizer import LatentDecoder, Tokenizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizerObjective(Tokenizing, Reconstructing, OneView):
    """Base of VQ and DVAE: a picture as one of `codes` ids for each patch of the encoder.

    encoder: a ViT. codes: K. code_width: d. decoder_width, decoder_layers, decoder_heads: of the decoder.

    A subclass gives `make_quantizer`, for a module with `lookup`, and `outputs`, the numbers that the decoder makes of
    a patch.
    """

    codes: int = 512
    code_width: int = 64
    decoder_width: int = 512
    decoder_layers: int = 4
    decoder_heads: int = 8

    def __post_init__(self):
        super().__post_init__()
        if self.codes < 2:
            raise UserError(f"{type(self).__name__}.codes={self.codes}: choose 2 or more")

    @property
    def outputs(self):
        return self.encoder.patch**2 * self.encoder.channels

    @property
    def decoder(self):
        return LatentDecoder(self.encoder, self.outputs, self.decoder_width, self.decoder_layers, self.decoder_heads)

    @property
    def tokenizer(self):
        """The Tokenizer that other objectives read."""
        return Tokenizer(self.encoder, self.make_quantizer(), self.decoder)

    def modules(self):
        n, e = self.patches, self.encoder
        return {
            **super().modules(),
            "quantizer": (self.make_quantizer(), jnp.zeros((1, n, e.d_model))),
            "decoder": (self.decoder, jnp.zeros((1, n, self.code_width))),
        }

    def pixels(self, outputs):
        """What the decoder gave [B, N, outputs] -> normalised pixels [B, N, P]."""
        return outputs

    def ids(self, variables, images):
        """Normalised images [B, H, W, C] -> int32 [B, N]."""
        _, seen = self.features(variables, images)
        return self.apply("quantizer", variables, seen["patches"])[1]["ids"]

    def decoded(self, variables, ids):
        codes = self.apply("quantizer", variables, ids, method="lookup")[0]
        outputs = self.apply("decoder", variables, codes)[0]
        e = self.encoder
        return unpatchify(self.pixels(outputs), e.patch, (e.image_size, e.image_size, e.channels))

    def reconstruct(self, variables, images, keys):
        """{"reconstructed": what the decoder makes of the pictures' ids}; {} where that is no picture."""
        del keys
        found = self.decoded(variables, self.ids(variables, images))
        return {} if found is None else {"reconstructed": found}

    def forward_flops(self, batch_spec):
        rows, e = batch_spec["mask"].size, self.encoder
        quantizer = 2 * rows * self.patches * (e.d_model * self.code_width + self.codes * self.code_width)
        decoder = self.decoder.flops(rows, self.code_width)
        return {"encoder": e.flops(rows), "quantizer": quantizer, "decoder": decoder}


def codebook_metrics(share, rows):
    """{"codebook_usage", "codebook_perplexity"} of the codes' shares [K], which sum to 1.

    usage: the part of the codes that have at least a tenth of an even share. perplexity: exp of the shares' entropy, K
    where all are used alike.
    """
    entropy = -jnp.sum(jnp.where(share > 0, share * jnp.log(jnp.where(share > 0, share, 1.0)), 0.0))
    usage = jnp.mean(share > 0.1 / len(share))
    found = {"codebook_usage": usage, "codebook_perplexity": jnp.exp(entropy)}
    return {name: (jax.lax.stop_gradient(x) * rows, rows) for name, x in found.items()}
