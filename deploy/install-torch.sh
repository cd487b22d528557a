#!/bin/sh
# Install the pinned PyTorch into a virtual environment, in the build that suits this machine.
#
#     sh deploy/install-torch.sh .venv/bin/python
#     sh deploy/install-torch.sh --look python3.12   installs nothing; exit status 69 where no build is to be had
#
# On Linux, PyPI's torch is the CUDA build and brings gigabytes of nvidia-* wheels. So without an NVIDIA GPU only a build
# that calls itself a CPU build is taken: its version ends in "+cpu", which PyPI never holds (PEP 440 bars local versions
# from it). No metadata need be read to tell the two apart, and nothing large is fetched by mistake. Sought in this order:
#
#   1. what pip is configured with: a site's own index or wheel folder comes first, and saves a long way;
#   2. PyTorch's CPU index, asked first with short time limits, since some sites cannot reach it;
#   3. otherwise nothing: the script says so and ends, unless HALOTILE_ALLOW_CUDA_TORCH=1 takes PyPI's CUDA build.
#
# HALOTILE_TORCH_CPU_INDEX names another index for step 2. Any build of the pinned version that is there already is kept
# (install ROCm's yourself, for one), also by later installs with `-c deploy/constraints.txt`: for pip "2.13.0+cpu"
# satisfies "==2.13.0".
set -eu

look=
[ "${1:-}" != --look ] || { look=1; shift; }
python=${1:?usage: sh deploy/install-torch.sh [--look] PYTHON}
constraints=$(dirname "$0")/constraints.txt
cpu_index=${HALOTILE_TORCH_CPU_INDEX:-https://download.pytorch.org/whl/cpu}
version=$(sed -n 's/^torch==\([0-9.]*\).*/\1/p' "$constraints")

say() { printf 'torch: %s\n' "$*"; }
die() { printf 'torch: %s\n' "$@" >&2; exit 1; }
pip() { "$python" -m pip "$@"; }
installed() { "$python" -c 'from importlib.metadata import version; print(version("torch"))' 2>/dev/null || true; }
has_gpu() { nvidia-smi -L 2>/dev/null | grep -q '^GPU '; }
seconds() { if command -v timeout >/dev/null; then timeout "$@"; else shift; "$@"; fi; }

# Whether pip, given these options, sees the CPU build for this Python. Reads index pages only.
offers_cpu_build() {
    seconds "${limit:-120}" "$python" -m pip index versions "$@" torch 2>/dev/null |
        tr ', ' '\n\n' | grep -qxF "$version+cpu"
}

[ -n "$version" ] || die "no line 'torch==VERSION' in $constraints"

case $(installed) in
"$version" | "$version"+*)
    say "$(installed) is installed already"
    if has_gpu && [ "$(installed)" = "$version+cpu" ]; then
        say "but this machine has an NVIDIA GPU, which a CPU build cannot use: remove the environment to start afresh"
    fi
    exit 0
    ;;
esac

if has_gpu; then
    why="NVIDIA GPU found: $version with CUDA"
    set -- -c "$constraints" torch
elif [ "$(uname -s)" != Linux ]; then
    why=$version # elsewhere PyPI's build has no CUDA
    set -- -c "$constraints" torch
elif offers_cpu_build; then
    why="no NVIDIA GPU: $version+cpu"
    set -- --no-deps "torch==$version+cpu" # what it depends on comes with the pinned rest
elif limit=30 offers_cpu_build --index-url "$cpu_index" --timeout 5 --retries 1; then
    why="no NVIDIA GPU: $version+cpu from $cpu_index"
    set -- --no-deps --index-url "$cpu_index" "torch==$version+cpu"
elif [ "${HALOTILE_ALLOW_CUDA_TORCH:-}" = 1 ]; then
    why="no NVIDIA GPU and no CPU build to be had: $version with CUDA, as HALOTILE_ALLOW_CUDA_TORCH=1 allows"
    set -- -c "$constraints" torch
elif [ "$look" ]; then
    say "no CPU build of torch $version for $("$python" -V) is to be had"
    exit 69
else
    die "no CPU build of torch $version for $("$python" -V) is to be had:" \
        "  pip's configured sources have none, and $cpu_index has none or was not reached." \
        "What is left is PyPI's build, which brings gigabytes of CUDA that this machine (no 'nvidia-smi -L') cannot use." \
        "Do one of these, then run the same command again:" \
        "  - let this machine reach $cpu_index, and see what pip says of it:" \
        "      $python -m pip index versions --index-url $cpu_index torch" \
        "  - fetch the wheel torch-$version+cpu elsewhere: $python -m pip install --no-deps ./torch-$version+cpu-*.whl" \
        "  - take the CUDA build all the same: set HALOTILE_ALLOW_CUDA_TORCH=1"
fi

say "$why"
[ -z "$look" ] || exit 0
pip install "$@"
say "$(installed) installed"
