"""Where the parameters of image models lie: one ordered table for every backbone, head and teacher."""

from paradigm import attentive, transformer

PARTITION_RULES = (
    *attentive.PARTITION_RULES,
    *transformer.PARTITION_RULES,
    (r"(encoder|target)/embed/kernel$", (None, "fsdp")),  # [P, D]; P is 49 for grey patches of 7: no axis divides it
    (r"(decoder|encoder)/(embed|predict)/kernel$", ("fsdp", None)),  # [D, width], [width, P]
    (r"(classifier|segmenter)/output/kernel$", ("fsdp", None)),  # [D, classes]
    (r"codebook(/sum)?$", ()),  # [K, d]: small, and read as a whole
    (r"(positions|ids)/embedding$", (None, "fsdp")),  # [N, D], or [1 + N, D]
    (r"(class_token|mask_token|registers)$", ()),  # [1, n, D]
    (r"conv/kernel$", (None, None, None, "fsdp")),  # [h, w, in, out]
    (r"fc\d+/kernel$", ("fsdp", "tensor")),  # [in, out] of a projection or prediction head
    (r"prototypes/kernel$", ("fsdp", "tensor")),  # [D, K]
    (r"(^|/)queue$", (("data", "fsdp"), None)),  # [K, D], SwAV's [2, K, D]
)
