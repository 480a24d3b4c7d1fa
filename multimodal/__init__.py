"""Image and text together: two towers and a shared space, built from vision and text."""

# What gin files may name, by module; launch.run.registry reads it. Nothing is imported for it here.
CONFIGURABLE = {
    "data": ("PairData",),
    "mixture": ("PairMixture",),
    "towers": ("clip_vit", "clip_text", "siglip_text"),
    "captioners": ("coca_text", "cappa_text", "single_stream"),
    "captions": ("Captions", "BigramCaptions"),
    "views": ("clip_views", "siglip_views"),
    "zero_shot": ("ZeroShot", "Retrieval"),
    "few_shot": ("FewShot",),
    "two_pictures": ("TwoPictures",),
    "visualize": ("Similarity", "Retrieved"),
}
