"""Image and text together: two towers and a shared space, built from vision and text."""
