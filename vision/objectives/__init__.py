"""The image objectives, one file and one line each."""
