#!/bin/sh
# Fetches what a GPU machine with jax, flax, optax and orbax may lack, as wheels for a machine without the internet:
#
#     sh benchmarks/gpu_wheels.sh DIR [PYTHON]        here, 3.12 unless PYTHON says another version; under 10 MB
#     pip install --no-deps --target SITE DIR/*.whl   there, with SITE on PYTHONPATH
set -e
: "${1:?give the directory that the wheels go to}"
platforms=$(for n in 17 24 27 28 34; do printf -- '--platform manylinux_2_%s_x86_64 ' "$n"; done)
for package in 'array_record>=0.8,<0.9' 'gin-config>=0.5,<0.6' 'grain>=0.2.14,<0.3' 'importlib_resources>=6,<8' \
    'portpicker' 'tensorboardx' 'more-itertools' 'zipp' 'pytest' 'pluggy' 'iniconfig'; do
    # shellcheck disable=SC2086  # a list of arguments
    python3 -m pip download --quiet --no-deps --only-binary=:all: --python-version "${2:-3.12}" \
        --implementation cp $platforms --platform manylinux2014_x86_64 --dest "$1" "$package"
done
du -sh "$1"
