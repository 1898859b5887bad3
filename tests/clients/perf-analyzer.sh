#!/usr/bin/env bash
# Unpack the library that perf_analyzer wants and no wheel has into the environment $1, if the
# system lacks it and is a Debian. Its test skips and says so where that was not possible.
set -euo pipefail

ldconfig -p 2>/dev/null | grep -q 'libb64\.so\.0d' && exit 0
cd "$1"
fetch() { apt-get download libb64-0d || { apt-get update && apt-get download libb64-0d; }; }
{ fetch && dpkg -x libb64-0d_*.deb libb64; } >/dev/null 2>&1 \
  || echo "perf_analyzer's test will skip: it needs libb64.so.0d (apt-get install libb64-0d)"
