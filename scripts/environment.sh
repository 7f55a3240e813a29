# Sourced by the other scripts, from the repository's root: makes a virtual environment and installs leanformers into it.
#
#     prepare_environment DIRECTORY EXTRAS [REQUIREMENT...]
#
# sets $python to its interpreter. A stamp makes the second call return at once until setup.cfg changes. torch is, in
# this order: the one already in DIRECTORY, the one that $PYTHON (python3) can import, the CUDA build if there is a
# CUDA device, the CPU build.

torch_version=2.13.0
torch_cpu_index=https://download.pytorch.org/whl/cpu

say() { printf '== %s\n' "$*"; }
fail() { printf 'error: %s\n' "$*" >&2; exit 1; }

prepare_environment() {
    local directory=$1 extras=$2 base=${PYTHON:-python3}
    shift 2
    python=$directory/bin/python
    local stamp=$directory/.leanformers-$extras wanted
    wanted="$(cksum <setup.cfg) $PWD $*"
    if [ -x "$python" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then
        say "using $directory, which has everything of setup.cfg"
        return
    fi
    command -v "$base" >/dev/null || fail "no '$base' on PATH; install Python 3.10 or newer, or set PYTHON=/its/path."
    "$base" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
        fail "$("$base" --version) is too old; leanformers needs 3.10 or newer. Set PYTHON=/path/to/a/newer/python."
    if ! "$python" -m pip --version >/dev/null 2>&1; then
        "$base" -c 'import ensurepip, venv' 2>/dev/null ||
            fail "$("$base" --version) has no venv module. On Debian and Ubuntu: sudo apt install python3-venv."
        say "making $directory with $("$base" --version)"
        "$base" -m venv "$directory"
    fi
    install_torch "$base"
    say "installing leanformers[$extras] $*"
    run_pip -e ".[$extras]" "$@"
    printf '%s' "$wanted" >"$stamp"
}

run_pip() { "$python" -m pip install -qq --disable-pip-version-check "$@"; }

# Prints the version and folder of the torch that interpreter $1 imports, if it is new enough.
find_torch() {
    "$1" -c '
import pathlib, torch
if tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 6):
    print(torch.__version__, pathlib.Path(torch.__file__).parent.parent)' 2>/dev/null
}

install_torch() {
    local base=$1 found
    if found=$(find_torch "$python") && [ -n "$found" ]; then
        say "torch ${found%% *} is there"
    elif found=$(find_torch "$base") && [ -n "$found" ]; then
        say "using the installed torch ${found%% *} in ${found#* }"
        printf '%s\n' "${found#* }" >"$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/torch_of_base.pth"
    elif [ "$(uname)" != Linux ] || nvidia-smi -L >/dev/null 2>&1; then
        say "installing torch $torch_version"
        run_pip "torch==$torch_version"
    else
        say "installing torch $torch_version for the CPU, as there is no CUDA device"
        # The indexes pip is configured for may have the CPU build, and pytorch.org may be out of reach: ask them first.
        run_pip "torch==$torch_version+cpu" 2>/dev/null ||
            run_pip "torch==$torch_version+cpu" --extra-index-url "$torch_cpu_index" --timeout 20 --retries 1 2>/dev/null ||
            { say "no CPU build within reach ($torch_cpu_index); taking the default one, which may bring CUDA along" &&
                run_pip "torch==$torch_version"; } ||
            fail "torch $torch_version could not be installed; install torch >= 2.6 into $(dirname "$(dirname "$python")") yourself and run this again."
    fi
}
