"""What finished runs have to say: reading run directories, comparing them in a table and a picture."""
