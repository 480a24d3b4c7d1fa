"""Devices, files, flags and time, once for every objective: the commands, and for a notebook `from launch import load`.

Below the commands are run (one training run), storage (where it is kept), aot (what it costs on devices that are not
there) and clusters (how it starts on the machines of others).
"""

from launch.load import load as load
