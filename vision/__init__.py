"""Images: encoders, augmentation, their objectives, data and probes."""

# What gin files may name, by module; launch.run.registry reads it. Nothing is imported for it here.
CONFIGURABLE = {
    "augment": (
        "Augment",
        "no_views",
        "mae_views",
        "simclr_views",
        "moco_v1_views",
        "moco_v2_views",
        "moco_v3_views",
        "byol_views",
        "dino_views",
        "swav_views",
    ),
    "rand_augment": ("RandAugment",),
    "masked_views": ("simmim_views", "beit_views", "i_jepa_views"),
    "palette": ("Palette",),
    "objectives.igpt": ("image_gpt",),
    "data": ("ImageData",),
    "synthetic_scenes": ("Shapes",),
    "vit": ("vit",),
    "resnet": ("resnet",),
    "probe": ("Probes",),
    "attention_maps": ("AttentionMaps",),
    "segments": ("Segments",),
    "codebook": ("Codebook",),
    "visualize": ("Reconstructions", "GeneratedImages", "Views", "Neighbours", "PatchPCA"),
}
