"""Devices, files, flags and time, once for every objective. In a notebook: `from launch import load`."""


def __getattr__(name):
    if name == "load":  # on first use: it brings jax and everything above it
        from launch.run import load

        return load
    raise AttributeError(f"module 'launch' has no attribute {name!r}")
