#!/bin/bash
# Run a part of the Python suite over a module built with ASan and UBSan.
# Usage: asan_suite.sh VENV [PYTEST ARGUMENTS]       (default: native tests, conformance without NIXL, pushes)
set -euo pipefail
venv=$(realpath "$1")
shift
if [ $# -eq 0 ]; then
  set -- tests/native tests/conformance/test_backends.py tests/integration/test_push.py
fi
# Left out: wild addresses of the caller's own, which are what a sanitizer is there to report, and
# how a process dies of a fault, which is then the sanitizer's business.
left_out=(
  tests/native/lanes/test_transfers.py::test_ranges_outside_the_entry_are_denied_by_index_and_the_lane_stays
  tests/native/copy/test_copy.py::test_addresses_that_no_process_has_are_faults_too
  tests/native/copy/test_copy.py::test_a_fault_elsewhere_still_ends_the_process_once_reported
)
build=$PWD/build/asan-python
python=$build/venv/bin/python

# A virtual environment without packages of its own: a path line reaches those of VENV, but not its
# editable install, whose import hook would win over the sanitized module.
test -x "$python" || "$venv/bin/python" -m venv --without-pip "$build/venv"
site=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
"$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))' >"$site/borrowed.pth"
"$venv/bin/python" tools/quietly.py build/log/asan-python \
  "$venv/bin/pip" install --no-deps --no-build-isolation --upgrade --target "$site" \
  -C build-dir="$build/cmake" -C cmake.build-type=RelWithDebInfo -C install.strip=false \
  -C cmake.define.LDD_SANITIZE=address,undefined .

export LD_PRELOAD="$(gcc -print-file-name=libasan.so):$(gcc -print-file-name=libubsan.so)"
# The interpreter keeps objects until its end, so leaks are not looked for (the native programs do).
export ASAN_OPTIONS=detect_leaks=0:halt_on_error=1:abort_on_error=1
export UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1
# Descriptors are not captured: a report would be lost with its process.
exec "$python" -m pytest -p no:cacheprovider --capture=sys "${left_out[@]/#/--deselect=}" \
  -o timeout=300 -o faulthandler_timeout=290 -q -n "${TEST_JOBS:-2}" --dist loadfile "$@"
