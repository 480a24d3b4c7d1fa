"""Where the parameters of image models lie: one ordered table for every backbone, head and teacher."""

PARTITION_RULES = (
    (r"attention/(query|key|value)/kernel$", ("fsdp", "tensor", None)),  # [D, H, K]
    (r"attention/(query|key|value)/bias$", ("tensor", None)),  # [H, K]
    (r"attention/out/kernel$", ("tensor", None, "fsdp")),  # [H, K, D]
    (r"mlp/up/kernel$", ("fsdp", "tensor")),  # [D, F]
    (r"mlp/up/bias$", ("tensor",)),
    (r"mlp/down/kernel$", ("tensor", "fsdp")),  # [F, D]
)
